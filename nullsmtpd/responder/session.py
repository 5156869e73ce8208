"""How is a dialogue held? One fixed reply to each command line, of which only the verb is interpreted.

Commands: RFC 5321 §4.1.1; the replies of a host that accepts no mail: RFC 7504 §3.
"""

import asyncio
import functools
from collections.abc import Callable
from socket import SocketType
from typing import cast

from nullsmtpd.responder.dialogues import Dialogue
from nullsmtpd.responder.drain import DrainProtocol
from nullsmtpd.responder.linger import LingerQueue
from nullsmtpd.responder.transport import Poller, SocketTransport

__all__ = ["COMMAND_TIMEOUT", "MAX_COMMANDS", "MAX_LINE_OCTETS", "SESSION_TIMEOUT", "SessionProtocol", "Sessions"]

#: RFC 5321 §4.5.3.1.4: a command line, CRLF included, has at most 512 octets.
MAX_LINE_OCTETS = 512

#: A failed delivery takes four (EHLO, MAIL, RSET, QUIT); RFC 5321 §4.5.3.1.8 allows a sender 100 recipients.
MAX_COMMANDS = 110

#: Seconds. RFC 5321 §4.5.3.2.7: a server should wait at least 5 minutes for the next command.
COMMAND_TIMEOUT = 300.0

#: Seconds: twice as long as for one command. A client that is still talking then has no mail to deliver.
SESSION_TIMEOUT = 600.0

#: Seconds. A timer that is later than this means that the process was stopped.
LATE = 0.01

#: Seconds that a client gets then: enough for the event loop to read what ten thousand of them have sent meanwhile.
READ_GRACE = 1.0

# Every verb in every table has four letters, followed by a space, a tab, or the end of line: at most two octets.
_VERB_OCTETS = 4
_KEPT_OCTETS = _VERB_OCTETS + 2


class SessionProtocol(asyncio.Protocol):
    """Greet, answer each command line from the table, send a final reply.

    ``dialogue``: the fixed replies. ``timeout``: seconds of silence after which the session ends. ``sessions``: the set
    of open sessions, to which the Protocol adds itself. ``finish`` gets the transport and the final reply, and sends it
    so that input after QUIT does not cost a client the 221; without it a `DrainProtocol` does.

    A line ends at LF, and a CR before that LF is part of the end; any other CR is an octet like any other. So the
    replies depend on the lines alone, not on the pieces in which they arrive. A line of more than 512 octets is
    answered once, as an unknown command. No more than six octets of a line are kept. No method raises.
    """

    __slots__ = (
        *("_commands", "_deadline", "_dialogue", "_finish", "_head", "_last_input", "_length", "_loop"),
        *("_sessions", "_timeout", "_timer", "_transport"),
    )

    def __init__(
        self,
        dialogue: Dialogue,
        timeout: float = COMMAND_TIMEOUT,
        sessions: set["SessionProtocol"] | None = None,
        finish: Callable[[asyncio.Transport, bytes], None] | None = None,
    ) -> None:
        self._dialogue = dialogue
        self._timeout = timeout
        self._sessions = set() if sessions is None else sessions
        self._finish = finish or _drain
        self._head = b""
        self._length = 0
        self._commands = 0
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the greeting and start the timer."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own are no subclass of it
        self._transport.set_write_buffer_limits(
            high=1
        )  # see pause_writing; not 0, which a TLS transport exceeds while it is empty
        self._sessions.add(self)
        self._loop = asyncio.get_running_loop()
        self._last_input = self._loop.time()
        self._deadline = self._last_input + SESSION_TIMEOUT
        self._check_timeout()
        self._send(self._dialogue.greeting)

    def data_received(self, data: bytes) -> None:
        """Answer the lines that end in ``data``; their replies leave together."""
        if self._transport is None:
            return  # the final reply was sent
        self._last_input = self._loop.time()
        *ended, rest = data.split(b"\n")
        head, length, replies = self._head, self._length, []
        for octets in ended:
            reply = self._reply_to(_kept(head, octets), length + len(octets) + len(b"\n"))
            head, length = b"", 0
            replies.append(reply)
            self._commands += 1
            if reply is self._dialogue.quit:
                self._end(b"".join(replies))
                return
            if self._commands == MAX_COMMANDS:
                self._end(b"".join([*replies, self._dialogue.too_many]))
                return
        self._head, self._length = _kept(head, rest), length + len(rest)
        if replies:
            self._send(b"".join(replies))

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

    def _reply_to(self, head: bytes, length: int) -> bytes:
        """Return the reply to a line of ``length`` octets that begins with ``head``."""
        verb, after = head[:_VERB_OCTETS].upper(), head[_VERB_OCTETS:]
        if length <= MAX_LINE_OCTETS and (after[:1] in (b"", b" ", b"\t") or after == b"\r"):
            return self._dialogue.replies.get(verb, self._dialogue.default)
        return self._dialogue.default

    def _check_timeout(self, *, has_read: bool = False) -> None:
        """End the session when the client was silent for too long; otherwise check again when that may be so.

        A process that was stopped for a while finds its timers due before it has read what arrived meanwhile, so it
        gets some time to read (``has_read``) before a client counts as silent.
        """
        now = self._loop.time()
        due = min(self._last_input + self._timeout, self._deadline)
        if due > now:
            self._timer = self._loop.call_at(due, self._check_timeout)
        elif not has_read and now - due > LATE:
            self._timer = self._loop.call_later(READ_GRACE, functools.partial(self._check_timeout, has_read=True))
        else:
            self._timer = None
            self._end(self._dialogue.timeout)

    def _send(self, replies: bytes) -> None:
        assert self._transport is not None
        try:  # not contextlib.suppress, which costs as much as the rest
            self._transport.write(replies)
        except (OSError, RuntimeError):
            pass  # the client has gone already

    def _end(self, final_reply: bytes) -> None:
        """Send the final reply and half-close; further input is discarded."""
        transport = self._transport
        self._detach()
        if transport is not None:
            self._finish(transport, final_reply)

    def _detach(self) -> None:
        self._sessions.discard(self)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _kept(head: bytes, octets: bytes) -> bytes:
    """Return what is kept of a line of which ``octets`` follow ``head``."""
    return (head + octets[:_KEPT_OCTETS])[:_KEPT_OCTETS]


def _drain(transport: asyncio.Transport, final_reply: bytes) -> None:
    drain = DrainProtocol(final_reply)
    transport.set_protocol(drain)
    drain.connection_made(transport)


class Sessions:
    """The clients of one server that have a session now, at most ``limit`` of them.

    ``total`` counts all since the start. After the final reply their sockets go to ``linger``.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limit: int, linger: LingerQueue, dialogue: Dialogue, timeout: float
    ) -> None:
        self.total = 0
        self._loop = loop
        self._limit = limit
        self._linger = linger
        self._dialogue = dialogue
        self._timeout = timeout
        self._poller = Poller(loop)
        self._members: set[SessionProtocol] = set()

    def __len__(self) -> int:
        """Return how many sessions there are now."""
        return len(self._members)

    def try_add(self, connection: SocketType) -> bool:
        """Begin a session on a connection that was just accepted; return False when there is no room."""
        if len(self._members) >= self._limit:
            return False
        session = SessionProtocol(self._dialogue, self._timeout, self._members, self._finish)
        try:
            SocketTransport(self._loop, self._poller, connection, session)
        except OSError:  # epoll has no room for the socket
            return False
        self.total += 1
        return True

    def shut_down(self) -> None:
        """End every session (RFC 5321 §3.8: 421 when the server shuts down)."""
        for session in self._members.copy():
            session.shut_down()

    def _finish(self, transport: asyncio.Transport, final_reply: bytes) -> None:
        own = cast("SocketTransport", transport)
        self._linger.add(own.detach(), own.unsent + final_reply)
