/* The least that answers as nullsmtpd does, in C: accept4, send, shutdown, close, and no other call for a connection.
 *
 * usage: control PORT KEEP BACKLOG
 *
 * Every connection is accepted, sent the line, half-closed, and kept in a FIFO of KEEP descriptors before it is closed;
 * 0 closes it at once. The listener is corked, so that line and FIN leave as one segment.
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static const char line[] = "521 Host does not accept mail\r\n";

static int fail(const char *what)
{
    perror(what);
    return 1;
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: %s PORT KEEP BACKLOG\n", argv[0]);
        return 2;
    }
    size_t keep = (size_t)atoi(argv[2]), next = 0;
    int *fifo = malloc((keep + 1) * sizeof *fifo);
    if (!fifo)
        return fail("malloc");
    for (size_t i = 0; i < keep; i++)
        fifo[i] = -1;

    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listener, IPPROTO_TCP, TCP_CORK, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0)
        return fail("bind");
    if (listen(listener, atoi(argv[3])) < 0)
        return fail("listen");

    int events = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll_ctl(events, EPOLL_CTL_ADD, listener, &event) < 0)
        return fail("epoll_ctl");
    for (;;) {
        if (epoll_wait(events, &event, 1, -1) < 0)
            continue;
        int connection;
        while ((connection = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
            if (send(connection, line, sizeof line - 1, MSG_NOSIGNAL) > 0)
                shutdown(connection, SHUT_WR);
            if (keep) {
                if (fifo[next] >= 0)
                    close(fifo[next]);
                fifo[next] = connection;
                next = (next + 1) % keep;
            } else
                close(connection);
        }
    }
}
