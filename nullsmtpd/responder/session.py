"""How is a dialogue held? One fixed reply to each command line, of which only the verb is interpreted.

Commands: RFC 5321 §4.1.1; the replies of a host that accepts no mail: RFC 7504 §3.
"""

import asyncio
import contextlib
import functools
from socket import SocketType
from typing import cast

from nullsmtpd.responder.connections import ConnectionSet
from nullsmtpd.responder.drain import MAX_DRAINS, DrainProtocol, Drains
from nullsmtpd.responder.replies import Dialogue

__all__ = ["COMMAND_TIMEOUT", "MAX_COMMANDS", "MAX_LINE_OCTETS", "SESSION_TIMEOUT", "SessionProtocol", "Sessions"]

#: RFC 5321 §4.5.3.1.4: a command line, CRLF included, has at most 512 octets.
MAX_LINE_OCTETS = 512

#: A failed delivery takes four (EHLO, MAIL, RSET, QUIT); RFC 5321 §4.5.3.1.8 allows a sender 100 recipients.
MAX_COMMANDS = 110

#: Seconds. RFC 5321 §4.5.3.2.7: a server should wait at least 5 minutes for the next command.
COMMAND_TIMEOUT = 300.0

#: Seconds: twice as long as for one command. A client that is still talking then has no mail to deliver.
SESSION_TIMEOUT = 600.0

#: Seconds that a client gets when its timeout has expired: one iteration of the event loop, however short.
READ_GRACE = 0.001

# Every verb in every table has four letters, followed by a space, a tab, or the end of line: at most two octets.
_VERB_OCTETS = 4
_KEPT_OCTETS = _VERB_OCTETS + 2


class SessionProtocol(asyncio.Protocol):
    """Greet, answer each command line from the table, send a final reply, drain.

    ``dialogue``: the fixed replies. ``timeout``: seconds of silence after which the session ends. ``sessions``: the set
    of Protocols with a session now. ``drains`` and ``max_drains``: passed on to the `DrainProtocol` that takes over
    after the final reply, so that input after QUIT does not cost a client the 221.

    A line ends at LF, and a CR before that LF is part of the end; any other CR is an octet like any other. So the
    replies depend on the lines alone, not on the pieces in which they arrive. A line of more than 512 octets is
    answered once, as an unknown command. No more than six octets of a line are kept. No method raises.
    """

    __slots__ = (
        *("_commands", "_deadline", "_dialogue", "_drains", "_head", "_last_input", "_length", "_max_drains"),
        *("_loop", "_sessions", "_timeout", "_timer", "_transport"),
    )

    def __init__(
        self,
        dialogue: Dialogue,
        timeout: float = COMMAND_TIMEOUT,
        sessions: set["SessionProtocol"] | None = None,
        drains: set[DrainProtocol] | None = None,
        max_drains: int = MAX_DRAINS,
    ) -> None:
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
        """Send the greeting and start the timer."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own are no subclass of it
        self._transport.set_write_buffer_limits(high=0)  # see pause_writing
        self._sessions.add(self)
        self._loop = asyncio.get_running_loop()
        self._last_input = self._loop.time()
        self._deadline = self._last_input + SESSION_TIMEOUT
        self._check_timeout()
        self._send(self._dialogue.greeting)

    def data_received(self, data: bytes) -> None:
        """Answer the lines that end in ``data``; their replies leave together."""
        if self._transport is None:
            return None  # the final reply was sent
        self._last_input = self._loop.time()
        *ended, rest = data.split(b"\n")
        replies = []
        for octets in ended:
            self._read(octets)
            reply = self._reply_to_line()
            replies.append(reply)
            if reply is self._dialogue.quit:
                return self._end(b"".join(replies))
            if self._commands == MAX_COMMANDS:
                return self._end(b"".join([*replies, self._dialogue.too_many]))
        self._read(rest)
        return self._send(b"".join(replies))

    def eof_received(self) -> bool:
        """Let the transport close: replies in its buffer are sent first."""
        return False

    def pause_writing(self) -> None:
        """Abort a client that sends commands and does not read: the kernel's buffer is full of replies.

        Not for the greeting, for which the kernel may have had no buffer at that moment.
        """
        if self._transport is not None and self._commands:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room for the next client."""
        self._detach()

    def shut_down(self) -> None:
        """Send 421 and end the session: the server shuts down."""
        self._end(self._dialogue.shutdown)

    def _read(self, octets: bytes) -> None:
        """Note the length of the current line and its first octets."""
        self._head = (self._head + octets[:_KEPT_OCTETS])[:_KEPT_OCTETS]
        self._length += len(octets)

    def _reply_to_line(self) -> bytes:
        """Return the reply to the line that has ended, and start the next."""
        head, length = self._head, self._length + len(b"\n")
        self._head, self._length = b"", 0
        self._commands += 1
        verb, after = head[:_VERB_OCTETS].upper(), head[_VERB_OCTETS:]
        if length <= MAX_LINE_OCTETS and (after[:1] in (b"", b" ", b"\t") or after == b"\r"):
            return self._dialogue.replies.get(verb, self._dialogue.default)
        return self._dialogue.default

    def _check_timeout(self, *, has_read: bool = False) -> None:
        """End the session when the client was silent for too long; otherwise check again when that may be so.

        A process that was stopped for a while finds its timers due before it has read what arrived meanwhile, so the
        event loop gets one iteration to read (``has_read``) before a client counts as silent.
        """
        now = self._loop.time()
        due = min(self._last_input + self._timeout, self._deadline)
        if due > now:
            self._timer = self._loop.call_at(due, self._check_timeout)
        elif not has_read:
            self._timer = self._loop.call_later(READ_GRACE, functools.partial(self._check_timeout, has_read=True))
        else:
            self._timer = None
            self._end(self._dialogue.timeout)

    def _send(self, reply: bytes) -> None:
        if reply and self._transport is not None:
            with contextlib.suppress(OSError, RuntimeError):  # the client has gone already
                self._transport.write(reply)

    def _end(self, final_reply: bytes) -> None:
        """Send the final reply and half-close; further input is discarded."""
        transport = self._transport
        self._detach()
        if transport is not None:
            drain = DrainProtocol(final_reply, drains=self._drains, max_drains=self._max_drains)
            transport.set_protocol(drain)
            drain.connection_made(transport)

    def _detach(self) -> None:
        self._sessions.discard(self)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Sessions(ConnectionSet[SessionProtocol]):
    """The clients of one server that have a session now."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limit: int, drains: Drains, dialogue: Dialogue, timeout: float
    ) -> None:
        super().__init__(loop, limit)
        self._drains = drains
        self._dialogue = dialogue
        self._timeout = timeout

    def try_add(self, connection: SocketType) -> bool:
        """Take over a connection that was just accepted; return False when there is no room."""
        if self.is_full:
            return False
        drains = self._drains
        self.attach(
            connection, SessionProtocol(self._dialogue, self._timeout, self.members, drains.members, drains.limit)
        )
        return True

    def shut_down(self) -> None:
        """End every session (RFC 5321 §3.8: 421 when the server shuts down)."""
        for session in self:
            session.shut_down()
