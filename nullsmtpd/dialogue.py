"""How connections come to a dialogue: the accept loop of the modes ``session`` and ``mail``."""

import asyncio
import socket
from typing import TYPE_CHECKING

from nullsmtpd.counters import Counters
from nullsmtpd.linger import Batch, Lingering
from nullsmtpd.responder import Responder
from nullsmtpd.session import Sessions

if TYPE_CHECKING:
    from nullsmtpd.access import AccessLog

__all__ = ["DialogueResponder"]


class DialogueResponder(Responder):
    """Listening sockets whose connections are handed to ``sessions``; when those are full, they are answered 521.

    The listeners must not be corked.
    """

    _worth_a_look = 0  # the dialogues wake the loop up anyway, and go on the faster the sooner they begin

    def __init__(  # noqa: PLR0913, PLR0917 - those of the base class, and the sessions
        self,
        loop: asyncio.AbstractEventLoop,
        listeners: list[socket.socket],
        reply: bytes,
        counters: Counters,
        lingering: Lingering,
        sessions: Sessions,
        access_log: "AccessLog | None" = None,
    ) -> None:
        """Take the listeners over; `stop` closes them."""
        super().__init__(loop, listeners, reply, counters, lingering, access_log)
        self._sessions = sessions

    def _answer(self, batch: Batch) -> None:
        """Begin a dialogue with each, as long as there is room; the others hear what mode ``close`` says."""
        if too_many := [connection for connection in batch if not self._sessions.take(connection)]:
            super()._answer(too_many)
