/* What a connection costs at least when it is answered as nullsmtpd answers it: accept4, send, shutdown, close.
 *
 * usage: control PORT BACKLOG
 *
 * Every connection is accepted, sent the line and half-closed. The newest KEEP connections stay open, so that most
 * clients have closed first. MSG_MORE: line and FIN leave as one segment.
 */
#define _GNU_SOURCE
#include <err.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { KEEP = 64 }; /* the number of clients in bench compare's closed loop */

static const char line[] = "521 Host does not accept mail\r\n";

int main(int argc, char **argv)
{
    if (argc != 3)
        errx(2, "usage: control PORT BACKLOG");
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0)
        err(1, "bind");
    if (listen(listener, atoi(argv[2])) < 0)
        err(1, "listen");

    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) < 0)
        err(1, "epoll_ctl");

    int kept[KEEP], oldest = 0;
    for (int i = 0; i < KEEP; i++)
        kept[i] = -1;
    for (;;) {
        if (epoll_wait(epoll, &event, 1, -1) < 0)
            continue;
        int connection;
        while ((connection = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
            if (send(connection, line, sizeof line - 1, MSG_NOSIGNAL | MSG_MORE) > 0)
                shutdown(connection, SHUT_WR);
            if (kept[oldest] >= 0)
                close(kept[oldest]);
            kept[oldest] = connection;
            oldest = (oldest + 1) % KEEP;
        }
    }
}
