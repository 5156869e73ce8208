"""How a connection is answered, and when a listening socket is asked for more of them."""

import asyncio
import errno
import socket
from collections.abc import Callable
from socket import SocketType
from typing import TYPE_CHECKING, NamedTuple

from nullsmtpd.responder.counters import Counters
from nullsmtpd.responder.linger import Batch, Lingering
from nullsmtpd.runtime.log import log
from nullsmtpd.runtime.tcp import refuse_handshakes, stop_listening, waiting

if TYPE_CHECKING:
    from nullsmtpd.responder.access_log import AccessLog
    from nullsmtpd.responder.session import Sessions

__all__ = [
    "BURST",
    "CAPACITY_PAUSE",
    "END_SECONDS",
    "FULL_PAUSE",
    "HANDSHAKE_SECONDS",
    "MAX_PACE",
    "PACE",
    "WORTH_A_LOOK",
    "Responder",
]

#: Connections answered before the event loop gets its turn: about 4 ms of work, so signals and timers stay prompt.
BURST = 256

#: Seconds between two looks at the listeners of a busy server. One wake-up per connection costs about as much as the
#: answer itself, so when several connections wait at once, the listeners are looked at on a clock, and epoll is asked
#: again only once a look finds nobody. A lone client never waits; under load one waits 1 ms (bench/ compares).
PACE = 0.001

#: A look that answers fewer than this was hardly worth its wake-up, which costs what five answers do: the next waits
#: twice as long, up to 4 ms, which to any sender is nothing beside the way to us. One that answers twice as many halves
#: that again. It is what keeps several workers, each with its share of the clients, from costing far more than one.
WORTH_A_LOOK = 16
MAX_PACE = 0.004

#: Seconds until the next look when as many clients linger as may, all of them young.
FULL_PAUSE = 0.01

#: Seconds to accept nothing when descriptors or memory have run out; what waits keeps its place in the backlog. And
#: seconds until a line that the kernel had no buffer for is tried again.
CAPACITY_PAUSE = 0.1

#: Seconds for those who wait in the backlog when the server ends: a full one is done in a fifth of that. Where nothing
#: can keep new ones from coming, or is to, they would keep us for ever.
END_SECONDS = 1.0

#: Seconds within which a handshake that has begun comes to its end, one round trip around the Earth; and between two
#: looks for it.
HANDSHAKE_SECONDS = 0.25
END_LOOK = 0.01

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

# send(2): the kernel has no buffer just now.
_BUFFER_ERRNOS = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})

# As plain integers: the enumerations of the socket module cost a conversion each time.
_SOCK_STREAM = int(socket.SOCK_STREAM)
_SHUT_WR = int(socket.SHUT_WR)
_DONTWAIT = int(socket.MSG_DONTWAIT)


class _Port(NamedTuple):
    """A listening socket, with what is asked of it for every connection: looking that up costs more than the answer."""

    listener: socket.socket
    accept: Callable[[], tuple[int, object]]
    family: int


class Responder:
    """The listening sockets of a server, answered as RFC 7504 §3 has it: 521 at connection opening, then the FIN.

    ``listeners``: bound, listening, non-blocking; corked where that exists, but for dialogues. ``reply``: the octets of
    the line. ``lingering`` keeps what was answered. ``sessions`` hold a dialogue with each client that they have room
    for, instead of the line. ``access_log`` is told of every connection; without one it costs nothing. Nothing is
    accepted before `start`.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what answering takes
        self,
        loop: asyncio.AbstractEventLoop,
        listeners: list[socket.socket],
        reply: bytes,
        counters: Counters,
        lingering: Lingering,
        sessions: "Sessions | None" = None,
        access_log: "AccessLog | None" = None,
    ) -> None:
        """Take the listeners over; `stop` closes them."""
        self._loop = loop
        self._sessions = sessions
        # Dialogues wake the loop up anyway, and go on the faster the sooner they begin.
        self._worth_a_look = WORTH_A_LOOK if sessions is None else 0
        accepts = [listener._accept for listener in listeners]  # type: ignore[attr-defined] # noqa: SLF001
        self._serve: Callable[[Batch], None] = self._answer if sessions is None else self._begin_dialogues
        if access_log is not None:
            accepts = [access_log.noting(accept) for accept in accepts]
            self._serve = access_log.around(self._serve)
        self._ports = [
            _Port(listener, accept, int(listener.family)) for listener, accept in zip(listeners, accepts, strict=True)
        ]
        self._reply = reply
        self._counters = counters
        self._lingering = lingering
        self._timer: asyncio.TimerHandle | None = None
        self._pace = PACE
        self._logged: dict[tuple[str, int | None], float] = {}

    def start(self) -> None:
        """Answer from now on, whenever the event loop says that someone is there."""
        for port in self._ports:
            self._loop.add_reader(port.listener, self._on_readable, port)

    async def stop(self, *, for_good: bool = True) -> None:
        """Answer every connection that the kernel has completed, then close the listeners.

        Not ``for_good`` is for those that another process keeps open: whoever comes late waits for the next of us.
        """
        self._ask_no_more()
        if for_good:
            for port in self._ports:
                refuse_handshakes(port.listener)
        begin = now = self._loop.time()
        while now < begin + END_SECONDS:
            if self._look(self._ports):
                await asyncio.sleep(0)
            elif for_good and (now < begin + HANDSHAKE_SECONDS or self._has_waiting()):
                await asyncio.sleep(END_LOOK)
            else:
                break
            now = self._loop.time()
        self._ask_no_more()  # an accept error may have set the timer again
        for port in self._ports:
            if for_good:
                stop_listening(port.listener)
            port.listener.close()

    def _on_readable(self, port: _Port) -> None:
        """Answer at once; more than one waiting means that they come faster than they are worth a wake-up each."""
        if self._look([port], at_least=1) > 1 and self._timer is None:
            self._pace = PACE
            self._look_again_in(PACE)

    def _on_clock(self) -> None:
        """Answer what has come meanwhile; when nobody has, go back to being woken up."""
        self._timer = None
        answered = 0
        try:
            answered = self._look(self._ports)
        finally:  # even after a mistake of ours, which the loop logs: nothing else would ever call us again
            if self._timer is None:
                if answered:
                    self._timer = self._loop.call_later(self._pace_after(answered), self._on_clock)
                else:
                    self._wait()

    def _wait(self) -> None:
        """Have the event loop call us when someone is there; where the kernel cannot watch, look by the clock."""
        try:
            self.start()
        except OSError as error:  # epoll_ctl(2): ENOMEM, or ENOSPC at fs.epoll.max_user_watches
            self._log_once("wait-put-off", error)
            self._look_again_in(CAPACITY_PAUSE)

    def _pace_after(self, answered: int) -> float:
        """Return the seconds until the next look: twice or half as many as last time if too few came, or too many."""
        if answered < self._worth_a_look:
            self._pace = min(2 * self._pace, MAX_PACE)
        elif answered >= 2 * self._worth_a_look:
            self._pace = max(self._pace / 2, PACE)
        return self._pace

    def _ask_no_more(self) -> None:
        for port in self._ports:
            self._loop.remove_reader(port.listener)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _has_waiting(self) -> bool:
        return any(waiting(port.listener, otherwise=0) for port in self._ports)

    def _look_again_in(self, seconds: float) -> None:
        self._ask_no_more()
        self._timer = self._loop.call_later(seconds, self._on_clock)

    def _look(self, ports: list[_Port], at_least: int = 0) -> int:
        """Answer who waits, up to `BURST` at each port; return how many that were.

        ``at_least`` waits there for sure, also where the kernel does not tell.
        """
        batch: Batch = []
        for port in ports:
            count = min(max(waiting(port.listener, BURST), at_least), BURST)
            if not count:
                continue
            room = self._lingering.make_room(len(batch) + count) - len(batch)
            if room <= 0:
                if not batch:
                    self._look_again_in(FULL_PAUSE)
                self._ports.append(self._ports.pop(0))  # or the first would always be the one that gets the room
                break
            try:
                _accept(port, batch, room)
            except BlockingIOError:
                pass  # a client that gave up, or another process on the same socket, was first
            except OSError as error:
                if self._is_out_of_room(error):
                    break
        answered = len(batch)
        if batch:
            self._counters.connections += answered
            self._serve(batch)
        self._lingering.let_go()  # takes out of the batch who has finished already
        return answered

    def _answer(self, batch: Batch) -> None:
        """Say the line to each, and keep them until they have read it."""
        self._say(batch)
        self._lingering.add(batch)

    def _say(self, batch: Batch) -> None:
        """Say the line and the FIN to each: sendto and shutdown, which leave as one segment from a corked socket."""
        reply = self._reply
        unsent: Batch = []
        for connection in batch:
            try:
                connection.send(reply, _DONTWAIT)
                connection.shutdown(_SHUT_WR)
            except OSError as error:
                if error.errno in _BUFFER_ERRNOS:
                    unsent.append(connection)
                    self._log_once("send-put-off", error)
                else:  # ECONNRESET, EPIPE, ENOTCONN: the client has gone already; EBADF: it has had its linger time
                    self._counters.send_errors += 1
        if unsent:
            self._loop.call_later(CAPACITY_PAUSE, self._say, unsent)

    def _begin_dialogues(self, batch: Batch) -> None:
        """Talk with each, as long as there is room; the others hear what mode ``close`` says."""
        assert self._sessions is not None
        if too_many := [connection for connection in batch if not self._sessions.take(connection)]:
            self._answer(too_many)

    def _is_out_of_room(self, error: OSError) -> bool:
        """Count an accept error; if more than one connection is at fault, make room and accept nothing for a moment."""
        self._counters.count_accept_error(error.errno)
        if error.errno in _CONNECTION_ERRNOS:
            return False
        self._log_once("accept-paused", error)
        self._lingering.shed()
        if self._timer is None:
            self._look_again_in(CAPACITY_PAUSE)
        return True

    def _log_once(self, event: str, error: OSError) -> None:
        """Log what an error leads to, and the same not again for a while."""
        now = self._loop.time()
        if now >= self._logged.get((event, error.errno), now):
            self._logged[event, error.errno] = now + LOG_AGAIN
            name = errno.errorcode.get(error.errno or 0, error.errno)
            log(event, error=name, reason=error.strerror, lingering=len(self._lingering))


def _accept(port: _Port, batch: Batch, count: int) -> None:
    """Accept ``count`` connections into ``batch``: accept4 and the constructor's own getsockname, each time.

    What socket.accept() does, less its wrapper. Raises as accept(2) does, with ``batch`` holding what came before.
    """
    _, accept, family = port
    for _ in range(count):
        descriptor, _peer = accept()
        batch.append(SocketType(family, _SOCK_STREAM, 0, descriptor))
