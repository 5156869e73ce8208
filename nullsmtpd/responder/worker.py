"""What one process does from its first client to its last: the parts of a responder, and how they end."""

import asyncio
import os
import socket
from typing import TYPE_CHECKING

from nullsmtpd.cli.responder import Options
from nullsmtpd.responder.accept import Responder
from nullsmtpd.responder.counters import Counters
from nullsmtpd.responder.drain import MAX_DRAINS, Drains
from nullsmtpd.responder.linger import Lingering
from nullsmtpd.runtime.log import log
from nullsmtpd.runtime.process import max_files, open_files

if TYPE_CHECKING:
    from nullsmtpd.responder.access_log import AccessLog
    from nullsmtpd.responder.session import Sessions

__all__ = ["Worker"]

#: Descriptors left alone for what is not a client: the event loop's own, a log that is reopened, scrapes of --metrics.
SPARE_DESCRIPTORS = 8

#: Seconds between two looks at the remaining clients while the process ends.
END_TICK = 0.01


class Worker:
    """Answers the clients of ``listeners`` from now on, as ``options`` say, and counts in ``counters``.

    ``explain``: log it when limits had to be lowered.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: Options,
        counters: Counters,
        listeners: list[socket.socket],
        *,
        explain: bool = True,
    ) -> None:
        self._loop = loop
        self._options = options
        self._counters = counters
        self._explain = explain
        self._drains = Drains(loop, counters, MAX_DRAINS)
        self._lingering = Lingering(loop, counters, self._drains, options.linger, options.max_lingering)
        self._sessions = self._new_sessions()
        counters.process, counters.workers = os.getpid(), 1
        counters.descriptors = open_files()
        self._fit_into_descriptors()
        self._responder = self._new_responder(listeners)
        self._responder.start()

    async def finish(self, *, for_good: bool) -> None:
        """Answer what waits, close the listeners, and let the clients finish, at most for the linger time.

        ``for_good`` as for `nullsmtpd.responder.accept.Responder.stop`.
        """
        if for_good:  # else whoever has no room here waits for the next of us
            self._lingering.hurry()
        await self._responder.stop(for_good=for_good)
        if self._sessions is not None:
            await self._sessions.settle()
            self._sessions.close()
        last = self._loop.time() + self._options.linger
        while self._loop.time() < last and (self._lingering or self._drains or self._sessions):
            self._lingering.look_at_all()
            await asyncio.sleep(END_TICK)
        self._lingering.close_all()

    def _new_sessions(self) -> "Sessions | None":
        """Return what holds the dialogues; mode close does without, down to the import."""
        dialogue, timeout, limit = self._options.dialogue, self._options.timeout, self._options.max_sessions
        if dialogue is None:
            return None
        from nullsmtpd.responder.session import Sessions

        return Sessions(self._loop, self._counters, self._drains, dialogue, timeout, limit)

    def _new_responder(self, listeners: list[socket.socket]) -> Responder:
        return Responder(
            self._loop,
            listeners,
            self._options.reply,
            self._counters,
            self._lingering,
            self._sessions,
            self._new_access_log(),
        )

    def _new_access_log(self) -> "AccessLog | None":
        if not self._options.access_log:
            return None
        from nullsmtpd.responder.access_log import AccessLog

        return AccessLog(self._loop, self._counters, self._options.mode)

    def _fit_into_descriptors(self) -> None:
        """Lower what may talk and linger to what the limit of open files leaves."""
        left = max_files() - self._counters.descriptors - SPARE_DESCRIPTORS
        if self._sessions is not None:
            most = max(left // 2, left - self._lingering.limit)
            self._sessions.limit = self._lowered("max-sessions", self._sessions.limit, most)
            left = (left - self._sessions.limit) * 4 // 5  # a fifth for those who are drained after a dialogue
        self._lingering.limit = self._lowered("max-lingering", self._lingering.limit, left)
        self._drains.limit = min(MAX_DRAINS, self._lingering.limit // 4)

    def _lowered(self, option: str, wanted: int, left: int) -> int:
        if wanted <= left:
            return wanted
        if self._explain:
            log(f"{option}-lowered", wanted=wanted, to=max(1, left), because=f"at most {max_files()} files may be open")
        return max(1, left)
