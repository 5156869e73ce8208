"""The asyncio Protocol for modes with a dialogue: one fixed reply to each command line, of which only the verb is kept.

RFC 5321 §4.1.1 has the commands, RFC 7504 §3 what a host that accepts no mail says to them.
"""

import asyncio
import contextlib
import functools
from socket import SocketType
from typing import cast

from nullsmtpd.responder.connections import Attached
from nullsmtpd.responder.counters import Counters
from nullsmtpd.responder.drain import MAX_DRAINS, DrainProtocol, Drains
from nullsmtpd.responder.replies import Dialogue

__all__ = ["MAX_COMMANDS", "MAX_LINE_OCTETS", "MAX_SESSION_SECONDS", "TIMEOUT", "SessionProtocol", "Sessions"]

#: RFC 5321 §4.5.3.1.4: a command line, CRLF included, is at most 512 octets.
MAX_LINE_OCTETS = 512

#: A delivery that fails takes four (EHLO, MAIL, RSET, QUIT); RFC 5321 §4.5.3.1.8 lets a sender name 100 recipients.
MAX_COMMANDS = 110

#: RFC 5321 §4.5.3.2.7: a server should wait at least 5 minutes for the next command.
TIMEOUT = 300.0

#: Twice as long as for one command. Whoever is still talking then has no mail to deliver.
MAX_SESSION_SECONDS = 600.0

#: Seconds that a client which seems to have been silent for too long gets: one turn of the event loop, however short.
LAST_TURN = 0.001

# Every verb in every table has four letters. After one comes a space, a tab, or the line's end: two octets at most.
_VERB_OCTETS = 4
_KEPT_OCTETS = _VERB_OCTETS + 2


class SessionProtocol(asyncio.Protocol):
    """Greet, answer each command line from the table, take leave.

    ``dialogue``: the fixed replies. ``timeout``: seconds of silence after which the client is let go. ``sessions``: the
    Protocols in a dialogue now, for who wants to count them. ``drains`` and ``max_drains``: passed on to the
    `DrainProtocol` that a client gets after the last reply, so that what it has sent beyond its QUIT does not cost it
    the 221.

    A line ends at LF, and a CR before that LF is part of the end; a CR elsewhere is an octet like any other. So no
    reply is drawn from half a line, and the replies depend on the lines alone, not on how they arrive. A line of more
    than 512 octets is answered once, as an unknown command. No more than six octets of a line are ever kept. No method
    raises.
    """

    __slots__ = (
        *("_commands", "_deadline", "_dialogue", "_drains", "_head", "_last_heard", "_length", "_max_drains"),
        *("_loop", "_sessions", "_timeout", "_timer", "_transport"),
    )

    def __init__(
        self,
        dialogue: Dialogue,
        timeout: float = TIMEOUT,
        sessions: set["SessionProtocol"] | None = None,
        drains: set[DrainProtocol] | None = None,
        max_drains: int = MAX_DRAINS,
    ) -> None:
        """Note the table and the bounds; nothing happens before the connection is made."""
        self._dialogue = dialogue
        self._timeout = timeout
        self._sessions = set() if sessions is None else sessions
        self._drains = drains
        self._max_drains = max_drains
        self._head = b""
        self._length = 0
        self._commands = 0
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, and start the clocks."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own are no subclass of it
        self._transport.set_write_buffer_limits(high=0)  # see pause_writing
        if self not in self._sessions:
            self._sessions.add(self)
        self._loop = asyncio.get_running_loop()
        self._last_heard = self._loop.time()
        self._deadline = self._last_heard + MAX_SESSION_SECONDS
        self._watch_clock()
        self._say(self._dialogue.greeting)

    def data_received(self, data: bytes) -> None:
        """Answer the lines that end in ``data``; their replies leave together."""
        if self._transport is None:
            return None  # leaving already
        self._last_heard = self._loop.time()
        *ended, rest = data.split(b"\n")
        replies = []
        for octets in ended:
            self._read(octets)
            reply = self._answer()
            replies.append(reply)
            if reply is self._dialogue.quit:
                return self._leave(b"".join(replies))
            if self._commands == MAX_COMMANDS:
                return self._leave(b"".join([*replies, self._dialogue.too_many]))
        self._read(rest)
        return self._say(b"".join(replies))

    def eof_received(self) -> bool:
        """Let the transport close: replies that are still under way go out first."""
        return False

    def pause_writing(self) -> None:
        """Cut off a client that sends commands and does not read: the kernel's buffer is full of replies already.

        Not over the greeting, for which the kernel may have had no buffer just then.
        """
        if self._transport is not None and self._commands:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._forget()

    def shut_down(self) -> None:
        """Take leave because the server ends."""
        self._leave(self._dialogue.shutdown)

    def _read(self, octets: bytes) -> None:
        """Take note of a piece of a line: how long the line is now, and how it begins."""
        self._head = (self._head + octets[:_KEPT_OCTETS])[:_KEPT_OCTETS]
        self._length += len(octets)

    def _answer(self) -> bytes:
        """Return the reply to the line that has ended, and be ready for the next."""
        head, length = self._head, self._length + len(b"\n")
        self._head, self._length = b"", 0
        self._commands += 1
        if length > MAX_LINE_OCTETS:
            return self._dialogue.default
        verb, after = head[:_VERB_OCTETS].upper(), head[_VERB_OCTETS:]
        if after[:1] in (b"", b" ", b"\t") or after == b"\r":
            return self._dialogue.replies.get(verb, self._dialogue.default)
        return self._dialogue.default

    def _watch_clock(self, *, have_read: bool = False) -> None:
        """Look at the clock when the silence may have lasted too long; a command in between costs no timer.

        A process that was stopped for a while finds its timers due before it has read what came meanwhile, so the loop
        gets a turn to read (``have_read``) before a client counts as silent.
        """
        now = self._loop.time()
        due = min(self._last_heard + self._timeout, self._deadline)
        if due > now:
            self._timer = self._loop.call_at(due, self._watch_clock)
        elif not have_read:
            self._timer = self._loop.call_later(LAST_TURN, functools.partial(self._watch_clock, have_read=True))
        else:
            self._timer = None
            self._leave(self._dialogue.timeout)

    def _say(self, reply: bytes) -> None:
        if reply and self._transport is not None:
            with contextlib.suppress(OSError, RuntimeError):  # the client has gone already
                self._transport.write(reply)

    def _leave(self, farewell: bytes) -> None:
        """Say the last reply and half-close; what the client says from now on is discarded."""
        transport = self._transport
        self._forget()
        if transport is not None:
            drain = DrainProtocol(farewell, drains=self._drains, max_drains=self._max_drains)
            transport.set_protocol(drain)
            drain.connection_made(transport)

    def _forget(self) -> None:
        self._sessions.discard(self)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Sessions(Attached[SessionProtocol]):
    """The clients of one server that are in a dialogue."""

    def __init__(  # noqa: PLR0913, PLR0917 - what a dialogue is made of
        self,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
        drains: Drains,
        dialogue: Dialogue,
        timeout: float,
        limit: int,
    ) -> None:
        """Talk to nobody yet."""
        super().__init__(loop, limit, self._count)
        self._counters = counters
        self._drains = drains
        self._dialogue = dialogue
        self._timeout = timeout

    def take(self, connection: SocketType) -> bool:
        """Take over a connection that nothing was said on; False when there are enough of them."""
        if self.is_full:
            return False
        self._counters.sessions += 1
        drains = self._drains
        self.attach(connection, SessionProtocol(self._dialogue, self._timeout, self.open, drains.open, drains.limit))
        return True

    def _count(self, talking: int) -> None:
        self._counters.talking = talking

    def close(self) -> None:
        """Take leave of every client (RFC 5321 §3.8: 421 when the server shuts down)."""
        for session in self:
            session.shut_down()
