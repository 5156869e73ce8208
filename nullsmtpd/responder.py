"""How a connection is answered, and when a listening socket is asked for more of them."""

import asyncio
import errno
import socket
from socket import SocketType

from nullsmtpd.counters import Counters
from nullsmtpd.linger import Batch, Lingering
from nullsmtpd.log import log
from nullsmtpd.session import Sessions
from nullsmtpd.tcp import refuse_handshakes, waiting

__all__ = ["BURST", "CAPACITY_PAUSE", "FULL_PAUSE", "PACE", "DialogueResponder", "Responder"]

#: Connections answered before the event loop gets its turn: about 4 ms of work, so signals and timers stay prompt.
BURST = 256

#: Seconds between two looks at a busy listener. One wake-up per connection costs about as much as the answer itself, so
#: a listener that had several connections waiting is looked at on a clock, and epoll is asked again only once a look
#: finds none. A lone client never waits; under load one waits 1 ms at most (bench/ has the comparison).
PACE = 0.001

#: Seconds until the next look when as many clients linger as may, all of them young.
FULL_PAUSE = 0.01

#: Seconds to leave a listener alone when descriptors or memory have run out; what waits keeps its place in the backlog.
CAPACITY_PAUSE = 0.1

#: Seconds until the same accept error is worth another log line.
LOG_AGAIN = 60.0

# accept(2), "Error handling": a pending error of the connection, not of the listener. The next one may be fine.
_CONNECTION_ERRNOS = frozenset(
    number
    for name in (
        *("ECONNABORTED", "EINTR", "ENETDOWN", "EPROTO", "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH"),
        *("EOPNOTSUPP", "ENETUNREACH", "EPERM", "ETIMEDOUT", "ECONNRESET"),
    )
    if (number := getattr(errno, name, None)) is not None
)

# As plain integers: the enumerations of the socket module cost a conversion each time.
_SOCK_STREAM = int(socket.SOCK_STREAM)
_SHUT_WR = int(socket.SHUT_WR)
_DONTWAIT = int(socket.MSG_DONTWAIT)


class Responder:
    """One listening socket, answered as RFC 7504 §3 has it: 521 at connection opening, then the FIN.

    ``listener``: bound, listening, non-blocking, corked where that exists. ``reply``: the octets of the line.
    ``lingering`` keeps what was answered. Nothing is accepted before `start`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        reply: bytes,
        counters: Counters,
        lingering: Lingering,
    ) -> None:
        """Take the listener over; `stop` closes it."""
        self._loop = loop
        self._listener = listener
        self._family = int(listener.family)
        self._reply = reply
        self._counters = counters
        self._lingering = lingering
        self._timer: asyncio.TimerHandle | None = None
        self._logged: dict[int | None, float] = {}

    def start(self) -> None:
        """Answer from now on, whenever the event loop says that someone is there."""
        self._loop.add_reader(self._listener, self._on_readable)

    async def stop(self, *, for_good: bool = True) -> None:
        """Answer every connection that the kernel has completed, then close the listener.

        Not ``for_good`` is for a listener that another process keeps open: whoever comes late waits for the next of us.
        """
        self._ask_no_more()
        if for_good:
            refuse_handshakes(self._listener)
        for _ in range(2):  # handshakes that had begun before the refusal end between the two rounds
            while self._answer_burst(at_least=0):
                pass
            await asyncio.sleep(0.01)
        self._ask_no_more()  # an accept error may have set the timer again
        self._listener.close()

    def _on_readable(self) -> None:
        """Answer at once; more than one waiting means that they come faster than they are worth a wake-up each."""
        if self._answer_burst(at_least=1) > 1 and self._timer is None:
            self._look_again_in(PACE)

    def _on_clock(self) -> None:
        """Answer what has come meanwhile; when there is nothing, go back to being woken up."""
        self._timer = None
        if self._answer_burst(at_least=0) and self._timer is None:
            self._timer = self._loop.call_later(PACE, self._on_clock)
        elif self._timer is None:
            self.start()

    def _ask_no_more(self) -> None:
        self._loop.remove_reader(self._listener)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_again_in(self, seconds: float) -> None:
        self._ask_no_more()
        self._timer = self._loop.call_later(seconds, self._on_clock)

    def _answer_burst(self, at_least: int) -> int:
        """Answer what waits, up to `BURST`; return how many that were. ``at_least`` is for kernels that do not tell."""
        count = min(max(waiting(self._listener, BURST), at_least), BURST)
        if not count:
            self._lingering.let_go()
            return 0
        room = self._lingering.make_room(count)
        if not room:
            self._look_again_in(FULL_PAUSE)
            return 0
        batch: Batch = []
        try:
            self._accept(batch, room)
        except BlockingIOError:
            pass  # a client that gave up, or another process on the same socket, was first
        except OSError as error:
            self._on_accept_error(error)
        self._counters.connections += (accepted := len(batch))
        if batch:
            self._answer(batch)
        return accepted

    def _accept(self, batch: Batch, count: int) -> None:
        """Accept ``count`` connections into ``batch``: accept4 and the constructor's own getsockname, each time."""
        accept = self._listener._accept  # type: ignore[attr-defined] # noqa: SLF001 - typeshed leaves it out
        family = self._family
        for _ in range(count):
            # What socket.accept() does, less its wrapper.
            descriptor, _peer = accept()
            batch.append(SocketType(family, _SOCK_STREAM, 0, descriptor))

    def _answer(self, batch: Batch) -> None:
        """Say the line and the FIN to each: sendto and shutdown, which leave as one segment from a corked socket."""
        reply = self._reply
        for connection in batch:
            try:
                connection.send(reply, _DONTWAIT)
                connection.shutdown(_SHUT_WR)
            except OSError:  # ECONNRESET, EPIPE, ENOTCONN: the client has gone already
                self._counters.send_errors += 1
        self._lingering.add(batch)

    def _on_accept_error(self, error: OSError) -> None:
        """Count it; if it is not the fault of one connection, make room and leave the listener alone for a moment."""
        self._counters.count_accept_error(error.errno)
        if error.errno in _CONNECTION_ERRNOS:
            return
        now = self._loop.time()
        if now >= self._logged.get(error.errno, now):
            self._logged[error.errno] = now + LOG_AGAIN
            name = errno.errorcode.get(error.errno or 0, error.errno)
            log("accept-paused", error=name, reason=error.strerror, lingering=len(self._lingering))
        self._lingering.shed()
        if self._timer is None:
            self._look_again_in(CAPACITY_PAUSE)


class DialogueResponder(Responder):
    """One listening socket whose connections are handed to ``sessions``; when those are full, they are answered 521."""

    def __init__(  # noqa: PLR0913, PLR0917 - those of the base class, and the sessions
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        reply: bytes,
        counters: Counters,
        lingering: Lingering,
        sessions: Sessions,
    ) -> None:
        """Take the listener over; `stop` closes it."""
        super().__init__(loop, listener, reply, counters, lingering)
        self._sessions = sessions

    def _answer(self, batch: Batch) -> None:
        """Begin a dialogue with each, as long as there is room; the others hear what mode ``close`` says."""
        if too_many := [connection for connection in batch if not self._sessions.take(connection)]:
            super()._answer(too_many)
