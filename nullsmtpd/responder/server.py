"""How does the responder start, and how does it shut down?"""

import asyncio
import errno
import gc
import os
import socket
from typing import TYPE_CHECKING

from nullsmtpd.responder.accept import Acceptor
from nullsmtpd.responder.linger import LingerQueue
from nullsmtpd.responder.options import Options
from nullsmtpd.responder.shutdown import SHUTDOWN_POLL_INTERVAL, close_port, release_port
from nullsmtpd.runtime.log import log
from nullsmtpd.runtime.process import files_left, install_signal_handlers, lower_option, run, warn_if_root
from nullsmtpd.runtime.sockets import ListenError, bind, local_address
from nullsmtpd.runtime.systemd import Notifier, inherited_listeners

if TYPE_CHECKING:
    from nullsmtpd.responder.access_log import AccessLog
    from nullsmtpd.responder.session import Sessions

__all__ = ["serve"]

#: File descriptors reserved for what is not a client: the event loop's own, a log that is reopened, scrapes.
SPARE_DESCRIPTORS = 8

#: Clients that must fit into the limit of open files; with less room nobody would be answered under load.
MIN_CLIENTS = 4


def serve(options: Options) -> None:
    """Answer clients until a termination signal.

    Raises `nullsmtpd.runtime.sockets.ListenError` when a socket cannot be opened or is lost,
    `nullsmtpd.runtime.privileges.AccountError` and `nullsmtpd.runtime.privileges.PrivilegeError` when privileges cannot
    be dropped, and `OSError` when file descriptors or memory are missing.
    """
    run(lambda loop: _serve(loop, options))


async def _serve(loop: asyncio.AbstractEventLoop, options: Options) -> None:
    account = None
    if options.user or options.group:
        from nullsmtpd.runtime.privileges import drop_privileges, find_account

        account = find_account(options.user, options.group)
    # From listen(2) on, no signal may end the process with clients in the accept queue. Handlers run once this waits.
    shutdown = install_signal_handlers(loop, lambda: responder.log_stats())  # noqa: PLW0108 - made below
    inherited = inherited_listeners(os.environ)
    listeners = inherited or [
        listener
        for address in options.listen
        for listener in bind(address, options.backlog, reuse_port=options.reuse_port)
    ]
    responder = Responder(loop, options, listeners, shutdown)
    if account is not None:
        drop_privileges(account)
    warn_if_root(options.user)
    responder.acceptor.start()
    notifier = Notifier(os.environ)
    for listener in listeners:
        log("listening", address=local_address(listener))
    notifier.notify("READY=1", f"STATUS=Answering on {len(listeners)} sockets")
    notifier.start_watchdog(loop)
    gc.freeze()  # what was made so far lives as long as the process: the collector need not visit it again
    await shutdown.wait()
    notifier.notify("STOPPING=1", "STATUS=Waiting for clients to close")
    await responder.shut_down(keep_port=bool(inherited))


class Responder:
    """The parts of a responder with ``options``, which answers on ``listeners``, and their counters.

    A listener that is lost sets ``shutdown``. Modules that only some options need are imported here, before privileges
    are dropped: their files may be unreadable afterwards. Raises `OSError` when the limit of open files is too low.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: Options,
        listeners: list[socket.socket],
        shutdown: asyncio.Event,
    ) -> None:
        self._loop = loop
        self._options = options
        self._failure: ListenError | None = None
        self._sessions: Sessions | None = None
        self._access_log: AccessLog | None = None

        def on_failure(error: ListenError) -> None:
            self._failure = error
            shutdown.set()

        max_sessions, max_lingering = _limits(options)
        self._linger = LingerQueue(loop, options.linger, max_lingering)
        if options.dialogue is not None:
            from nullsmtpd.responder import session

            self._sessions = session.Sessions(loop, max_sessions, self._linger, options.dialogue, options.timeout)
        if options.access_log:
            from nullsmtpd.responder import access_log

            self._access_log = access_log.AccessLog(loop, options.mode)
        self.acceptor = Acceptor(
            loop,
            listeners,
            options.reply,
            self._linger,
            sessions=self._sessions,
            access_log=self._access_log,
            on_failure=on_failure,
        )
        if options.metrics:
            from nullsmtpd.responder.metrics import families
            from nullsmtpd.runtime.metrics import serve_metrics

            errors = self.acceptor.accept_errors
            serve_metrics(loop, options.metrics, lambda: families(self.stats(), errors, options.mode))

    async def shut_down(self, *, keep_port: bool) -> None:
        """Answer the accept queue, close the listeners, and give clients at most the linger time to close.

        Without ``keep_port`` the port is closed, too. Raises the `ListenError` of a listener that was lost.
        """
        if keep_port:
            await release_port(self.acceptor)
        else:
            self._linger.allow_immediate_eviction()  # nobody else will answer the clients for which there is no room
            await close_port(self.acceptor)
        if self._sessions is not None:
            self._sessions.shut_down()
        deadline = self._loop.time() + self._options.linger
        while self._loop.time() < deadline and (self._linger or self._linger.draining or self._sessions):
            self._linger.sweep_all()
            await asyncio.sleep(SHUTDOWN_POLL_INTERVAL)
        self._linger.close_all()
        self.log_stats()
        if self._failure is not None:
            raise self._failure

    def stats(self) -> dict[str, int]:
        """Return the counters: first what there is now, then totals since the start."""
        sessions, total_sessions = (0, 0) if self._sessions is None else (len(self._sessions), self._sessions.total)
        return {
            "lingering": len(self._linger),
            "draining": len(self._linger.draining),
            "talking": sessions,
            "connections": self._linger.connections + total_sessions,
            "cut_short": self._linger.cut_short,
            "drained": self._linger.drained,
            "sessions": total_sessions,
            "send_errors": self.acceptor.send_errors,
            "access_suppressed": 0 if self._access_log is None else self._access_log.suppressed,
        }

    def log_stats(self) -> None:
        """Log one ``stats`` line; accept errors as ``EMFILE:3,ENFILE:1``, or 0."""
        errors = sorted(self.acceptor.accept_errors.items())
        by_errno = ",".join(f"{errno.errorcode.get(number, number)}:{count}" for number, count in errors)
        log("stats", **self.stats(), accept_errors=by_errno or 0)


def _limits(options: Options) -> tuple[int, int]:
    """Return how many sessions and lingering sockets fit into the limit of open files. Raises `OSError`."""
    left = files_left(SPARE_DESCRIPTORS, MIN_CLIENTS)
    max_sessions = 0
    if options.dialogue is not None:
        max_sessions = lower_option("max-sessions", options.max_sessions, max(left // 2, left - options.max_lingering))
        left -= max_sessions
    return max_sessions, lower_option("max-lingering", options.max_lingering, left)
