"""One process from start to end: descriptors, signals, sockets, and what is in between left to the responders."""

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import uvloop

from nullsmtpd.counters import Counters
from nullsmtpd.drain import MAX_DRAINS, Drains
from nullsmtpd.linger import Lingering
from nullsmtpd.listeners import bind, format_address
from nullsmtpd.log import log
from nullsmtpd.manager import Notifier, inherited_listeners
from nullsmtpd.options import Options
from nullsmtpd.responder import Responder

if TYPE_CHECKING:
    from nullsmtpd.session import Sessions

__all__ = ["serve"]

#: Descriptors left alone for what is not a client: the event loop's own, a log that is reopened, a resolver.
SPARE_DESCRIPTORS = 8

#: Seconds between two looks at the remaining clients while the server ends.
END_TICK = 0.01


def serve(options: Options) -> None:
    """Answer until SIGTERM or SIGINT.

    Raises `nullsmtpd.listeners.ListenError` when there is nothing to listen on, `OSError` when the event loop itself
    lacks descriptors or memory.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS: a hard limit that it does not let us have
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loop = uvloop.new_event_loop()
    loop.set_exception_handler(_on_internal_error)
    served = _Server(loop, options).run()
    try:
        loop.run_until_complete(served)
    finally:
        served.close()
    # The loop stays open, as closing it gives the signals their default action back, and so does the interpreter's end,
    # but not to those that are ignored: a late one must not change the exit status.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class _Server:
    def __init__(self, loop: asyncio.AbstractEventLoop, options: Options) -> None:
        self._loop = loop
        self._options = options
        self._counters = Counters()
        self._end = asyncio.Event()
        self._notifier = Notifier(os.environ)
        self._drains = Drains(loop, self._counters, MAX_DRAINS)
        self._lingering = Lingering(loop, self._counters, self._drains, options.linger, options.max_lingering)
        self._sessions = self._new_sessions()

    async def run(self) -> None:
        # Before the sockets: from listen(2) on, no signal may end the process with clients in the backlog.
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_end_signal)
        self._loop.add_signal_handler(signal.SIGUSR1, self._log_stats)
        listeners, inherited = self._listeners()
        self._fit_into_descriptors()
        responder = self._responder(listeners)
        responder.start()
        for listener in listeners:
            log("listening", address=_own_address(listener))
        self._notifier.tell("READY=1", f"STATUS=Answering on {len(listeners)} sockets")
        self._watch()
        await self._end.wait()
        self._notifier.tell("STOPPING=1", "STATUS=Letting clients finish")
        self._lingering.hurry()
        await responder.stop(for_good=not inherited)
        if self._sessions is not None:
            self._sessions.close()
        await self._let_clients_finish()
        self._log_stats()

    def _listeners(self) -> tuple[list[socket.socket], bool]:
        """Return the sockets to listen on, and whether they were passed to us: those replace --listen."""
        cork = self._sessions is None
        if inherited := inherited_listeners(os.environ, cork=cork):
            return inherited, True
        backlog = self._options.backlog
        return [one for address in self._options.listen for one in bind(address, backlog, cork=cork)], False

    def _new_sessions(self) -> "Sessions | None":
        """Return what holds the dialogues; mode close does without, down to the import."""
        dialogue, timeout, limit = self._options.dialogue, self._options.timeout, self._options.max_sessions
        if dialogue is None:
            return None
        from nullsmtpd.session import Sessions

        return Sessions(self._loop, self._counters, self._drains, dialogue, timeout, limit)

    def _watch(self) -> None:
        """Tell the service manager that the loop turns, as often as it wants to hear it."""
        if seconds := self._notifier.watchdog_seconds:
            self._notifier.tell("WATCHDOG=1")
            self._loop.call_later(seconds, self._watch)

    def _responder(self, listeners: list[socket.socket]) -> Responder:
        given = (self._loop, listeners, self._options.reply, self._counters, self._lingering)
        if self._sessions is None:
            return Responder(*given)
        from nullsmtpd.dialogue import DialogueResponder

        return DialogueResponder(*given, self._sessions)

    async def _let_clients_finish(self) -> None:
        """Wait until the lingering and draining clients have closed, at most for the linger time."""
        last = self._loop.time() + self._options.linger
        while self._loop.time() < last and (self._lingering or self._drains or self._sessions):
            self._lingering.look_at_all()
            await asyncio.sleep(END_TICK)
        self._lingering.close_all()

    def _fit_into_descriptors(self) -> None:
        """Lower what may talk and linger to what the limit of open files leaves."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        left = soft - _open_descriptors() - SPARE_DESCRIPTORS if soft != resource.RLIM_INFINITY else sys.maxsize
        if self._sessions is not None:
            self._sessions.limit = self._lowered("max-sessions", self._sessions.limit, left // 2, soft)
            left -= self._sessions.limit
        self._lingering.limit = self._lowered("max-lingering", self._lingering.limit, left, soft)
        self._drains.limit = min(MAX_DRAINS, self._lingering.limit // 4)

    @staticmethod
    def _lowered(option: str, wanted: int, left: int, files: int) -> int:
        if wanted <= left:
            return wanted
        log(f"{option}-lowered", wanted=wanted, to=max(1, left), because=f"at most {files} files may be open")
        return max(1, left)

    def _on_end_signal(self) -> None:
        if self._end.is_set():  # the second one: no more patience
            self._log_stats()
            os._exit(0)
        self._end.set()

    def _log_stats(self) -> None:
        levels = {"lingering": len(self._lingering), "draining": len(self._drains)}
        if self._sessions is not None:
            levels["talking"] = len(self._sessions)
        log("stats", **levels, **self._counters.fields())


def _on_internal_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log a mistake of ours in one line; the next client is served all the same."""
    log("internal-error", message=context.get("message"), exception=repr(context.get("exception")))


def _own_address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return format_address(host, port)


def _open_descriptors() -> int:
    directory = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    try:
        return len(os.listdir(directory))
    except OSError:
        return 16  # a process with a loop and some listeners; SPARE_DESCRIPTORS covers a mistake
