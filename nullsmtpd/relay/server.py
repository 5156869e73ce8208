"""How does the relay's side start, and how does it shut down?"""

import asyncio
import contextlib
import errno
import os
import select
import socket

from nullsmtpd.nullmx import Resolver
from nullsmtpd.relay.answers import Answers
from nullsmtpd.relay.counters import Counters, families
from nullsmtpd.relay.options import Options
from nullsmtpd.relay.protocol import Clients
from nullsmtpd.relay.unix import unix_listener
from nullsmtpd.runtime.log import log
from nullsmtpd.runtime.metrics import serve_metrics
from nullsmtpd.runtime.privileges import drop_privileges, find_account
from nullsmtpd.runtime.process import files_left, install_signal_handlers, lower_option, run, warn_if_root
from nullsmtpd.runtime.sockets import CONNECTION_ERRNOS, Address, ListenError, bind, local_address, pause_accepting
from nullsmtpd.runtime.systemd import Notifier, inherited_listeners

__all__ = ["serve"]

#: Length of the accept queue, which the kernel limits to net.core.somaxconn.
BACKLOG = 4096

#: File descriptors reserved for what is neither a client nor a DNS query: a log that is reopened, scrapes, clients that
#: are refused.
SPARE_DESCRIPTORS = 16


def serve(options: Options) -> None:
    """Answer mail servers until a termination signal.

    Raises `nullsmtpd.runtime.sockets.ListenError` when a socket cannot be opened or is lost,
    `nullsmtpd.runtime.privileges.AccountError` and `nullsmtpd.runtime.privileges.PrivilegeError` when privileges cannot
    be dropped, and `OSError` when file descriptors or memory are missing.
    """
    run(lambda loop: Server(loop, options).serve())


class Server:
    """The parts of a server with ``options``, and their counters."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: Options) -> None:
        self._loop = loop
        self._options = options
        self._counters = Counters()
        self._failure: ListenError | None = None

    async def serve(self) -> None:
        """Serve until a termination signal, and shut down. Raises `ListenError` when a listener is lost."""
        self._shutdown = install_signal_handlers(self._loop, self._log_stats)
        notifier = Notifier(os.environ)
        with contextlib.ExitStack() as unix_sockets:
            listeners = self._open_sockets(unix_sockets)
            for listener in listeners:
                self._loop.add_reader(listener, self._accept, listener)
                log("listening", address=_address(listener))
            notifier.notify("READY=1", f"STATUS=Answering on {len(listeners)} sockets")
            notifier.start_watchdog(self._loop)
            await self._shutdown.wait()
        notifier.notify("STOPPING=1", "STATUS=Waiting for clients to finish")
        for listener in listeners:
            self._loop.remove_reader(listener)
            for _ in range(BACKLOG):  # closing the listener would reset the clients that wait
                if not self._accept(listener):
                    break
            listener.close()
        await self._clients.shut_down()
        self._log_stats()
        if self._failure is not None:
            raise self._failure

    def _open_sockets(self, unix_sockets: contextlib.ExitStack) -> list[socket.socket]:
        """Return the listening sockets, and drop privileges; sockets that were passed in replace --listen."""
        options = self._options
        account = find_account(options.user, options.group)
        listeners = inherited_listeners(os.environ, unix=True)
        for address in () if listeners else options.listen:
            if isinstance(address, Address):
                listeners += bind(address, BACKLOG)
            else:
                listeners.append(unix_sockets.enter_context(unix_listener(address, BACKLOG)))
        for listener in listeners:
            if listener.family != socket.AF_UNIX:  # inherited by connections: no reply waits for the last one's ACK
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if options.metrics:
            serve_metrics(self._loop, options.metrics, lambda: families(self._stats()))
        # As many clients as leave room for a DNS query each, beside the sockets that are open now.
        left = files_left(SPARE_DESCRIPTORS, needed=2)
        limit = lower_option("max-sessions", options.max_sessions, left // 2)
        self._answers = Answers(
            self._counters,
            Resolver(options.resolver, options.timeout).look_up_mx,
            cache_size=options.cache,
            max_pending=limit,
            exceptions=options.exceptions,
        )
        self._clients = Clients(self._answers, self._counters, limit)
        drop_privileges(account)
        warn_if_root(options.user)
        return listeners

    def _accept(self, listener: socket.socket) -> bool:
        """Accept one client; return whether there may be another.

        The loop's own servers would not do: they close connections that they have no file descriptor for, spin when a
        listener is shut down, and from Python 3.13 on remove Unix sockets that a service manager goes on using.
        """
        try:
            connection, _ = listener.accept()
        except OSError as error:
            if _is_shut_down(listener):
                self._failure = ListenError(errno.EINVAL, "the listening socket was shut down", _address(listener))
                self._shutdown.set()
            elif error.errno in CONNECTION_ERRNOS:
                return True
            elif not isinstance(error, BlockingIOError):
                pause_accepting(self._loop, listener, self._accept)
            return False
        connection.setblocking(False)
        self._clients.admit(connection)
        return True

    def _stats(self) -> dict[str, int]:
        return {"talking": len(self._clients), **self._answers.gauges(), **self._counters.stats()}

    def _log_stats(self) -> None:
        log("stats", **self._stats())


def _is_shut_down(listener: socket.socket) -> bool:
    """Return whether another process that has the socket called shutdown(2): nobody can connect to it any more."""
    poll = select.poll()
    poll.register(listener, 0)
    return bool(poll.poll(0))  # POLLHUP, which is always reported; accept(2) says EINVAL for TCP, EAGAIN for Unix


def _address(listener: socket.socket) -> str:
    if listener.family != socket.AF_UNIX:
        return local_address(listener)
    # unix(7): an abstract name begins with a NUL, which is commonly written as "@".
    return "unix:" + os.fsdecode(listener.getsockname()).replace("\0", "@", 1)
