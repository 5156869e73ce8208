"""How does the responder start, and how does it shut down?"""

import asyncio
import errno
import functools
import gc
import os
import socket
from typing import TYPE_CHECKING

from nullsmtpd.responder.accept import SHUTDOWN_POLL_INTERVAL, Acceptor
from nullsmtpd.responder.drain import MAX_DRAINS, Drains
from nullsmtpd.responder.linger import LingerQueue
from nullsmtpd.responder.options import Options
from nullsmtpd.runtime.log import log
from nullsmtpd.runtime.privileges import drop_privileges, find_account
from nullsmtpd.runtime.process import (
    install_signal_handlers,
    max_files,
    open_files,
    raise_file_limit,
    require_files,
    run,
    warn_if_root,
)
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
    raise_file_limit()
    run(functools.partial(_serve, options))


async def _serve(options: Options, loop: asyncio.AbstractEventLoop) -> None:
    responder = Responder(loop, options)
    shutdown = install_signal_handlers(loop, responder.log_stats)
    account = find_account(options.user, options.group)
    # From listen(2) on, no signal may end the process with clients in the accept queue: its handlers are installed.
    inherited = inherited_listeners(os.environ, cork=options.dialogue is None)
    listeners = inherited or [
        listener
        for address in options.listen
        for listener in bind(address, options.backlog, cork=options.dialogue is None, reuse_port=options.reuse_port)
    ]
    if options.metrics:
        await responder.serve_metrics(bind(options.metrics, socket.SOMAXCONN))
    drop_privileges(account)
    warn_if_root(options.user)
    responder.start(listeners, shutdown)
    notifier = Notifier(os.environ)
    for listener in listeners:
        log("listening", address=local_address(listener))
    notifier.notify("READY=1", f"STATUS=Answering on {len(listeners)} sockets")
    notifier.start_watchdog(loop)
    gc.freeze()  # what was made so far lives as long as the process: the collector need not visit it again
    await shutdown.wait()
    notifier.notify("STOPPING=1", "STATUS=Waiting for clients to finish")
    await responder.shut_down(close_port=not inherited)


class Responder:
    """The parts of a responder with ``options``, and their counters."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: Options) -> None:
        self._loop = loop
        self._options = options
        self._drains = Drains(loop, MAX_DRAINS)
        self._linger = LingerQueue(loop, self._drains, options.linger, options.max_lingering)
        self._sessions = self._new_sessions()
        self._access_log = self._new_access_log()
        self._acceptor: Acceptor | None = None
        self._failure: ListenError | None = None

    # What these options need is imported now: as another user the process may not be able to read it.

    def _new_sessions(self) -> "Sessions | None":
        options = self._options
        if options.dialogue is None:
            return None
        from nullsmtpd.responder.session import Sessions

        return Sessions(self._loop, options.max_sessions, self._drains, options.dialogue, options.timeout)

    def _new_access_log(self) -> "AccessLog | None":
        if not self._options.access_log:
            return None
        from nullsmtpd.responder.access_log import AccessLog

        return AccessLog(self._loop, self._options.mode)

    async def serve_metrics(self, listeners: list[socket.socket]) -> None:
        """Serve the counters to Prometheus on ``listeners``."""
        from nullsmtpd.responder.metrics import families
        from nullsmtpd.runtime.metrics import serve_metrics

        await serve_metrics(
            self._loop, listeners, lambda: families(self.stats(), self.accept_errors, self._options.mode)
        )
        for listener in listeners:
            log("metrics", address=local_address(listener))

    def start(self, listeners: list[socket.socket], shutdown: asyncio.Event) -> None:
        """Answer on ``listeners``. A listener that is lost sets ``shutdown``, and `shut_down` raises its error."""

        def on_failure(error: ListenError) -> None:
            self._failure = self._failure or error
            shutdown.set()

        self._apply_file_limit()
        self._acceptor = Acceptor(
            self._loop,
            listeners,
            self._options.reply,
            self._linger,
            sessions=self._sessions,
            access_log=self._access_log,
            on_failure=on_failure,
        )
        self._acceptor.start()

    async def shut_down(self, *, close_port: bool) -> None:
        """Answer the accept queue, close the listeners, and give clients at most the linger time to finish.

        ``close_port``: see `Acceptor.drain`. Raises the `ListenError` of a listener that was lost.
        """
        assert self._acceptor is not None
        if close_port:  # otherwise clients for which there is no room wait for the next process
            self._linger.allow_immediate_eviction()
        await self._acceptor.drain(close_port=close_port)
        if self._sessions is not None:
            await self._sessions.wait_attached()
            self._sessions.shut_down()
        deadline = self._loop.time() + self._options.linger
        while self._loop.time() < deadline and (self._linger or self._drains or self._sessions):
            self._linger.close_finished(everything=True)
            await asyncio.sleep(SHUTDOWN_POLL_INTERVAL)
        self._linger.close_all()
        self.log_stats()
        if self._failure is not None:
            raise self._failure

    @property
    def accept_errors(self) -> dict[int, int]:
        """Failed accepts by errno."""
        return self._acceptor.accept_errors if self._acceptor else {}

    def stats(self) -> dict[str, int]:
        """Return the counters: first what there is now, then totals since the start."""
        sessions = self._sessions
        return {
            "lingering": len(self._linger),
            "draining": len(self._drains),
            "talking": len(sessions) if sessions else 0,
            "connections": self._linger.connections + (sessions.total if sessions else 0),
            "cut_short": self._linger.cut_short,
            "drained": self._drains.total,
            "sessions": sessions.total if sessions else 0,
            "send_errors": self._acceptor.send_errors if self._acceptor else 0,
            "access_suppressed": self._access_log.suppressed if self._access_log else 0,
        }

    def log_stats(self) -> None:
        """Log one ``stats`` line; accept errors as ``EMFILE:3,ENFILE:1``, or 0."""
        names = (f"{errno.errorcode.get(number, number)}:{n}" for number, n in sorted(self.accept_errors.items()))
        log("stats", **self.stats(), accept_errors=",".join(names) or 0)

    def _apply_file_limit(self) -> None:
        """Lower the limits of sessions and lingering sockets to the limit of open files. Raises `OSError`."""
        reserved = open_files() + SPARE_DESCRIPTORS
        require_files(reserved + MIN_CLIENTS)
        left = max_files() - reserved
        if self._sessions is not None:
            limit = max(left // 2, left - self._linger.limit)
            self._sessions.limit = _lowered("max-sessions", self._sessions.limit, limit)
            left = (left - self._sessions.limit) * 4 // 5  # a fifth for clients that are drained after a session
        self._linger.limit = _lowered("max-lingering", self._linger.limit, left)
        self._drains.limit = min(MAX_DRAINS, self._linger.limit // 4)


def _lowered(option: str, wanted: int, left: int) -> int:
    if wanted <= left:
        return wanted
    log(f"{option}-lowered", wanted=wanted, to=max(1, left), reason=f"at most {max_files()} files may be open")
    return max(1, left)
