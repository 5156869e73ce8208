"""The load generator's event loop: one process, raw non-blocking sockets, as little work per connection as Python can.

A connection takes ten system calls: socket, bind and its option when source addresses rotate, connect, epoll_ctl, a
share of epoll_wait, recv twice, close. Registration is edge-triggered and done once, and times go into arrays.
"""

import contextlib
import errno
import gc
import select
import socket
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from socket import SocketType
from typing import NamedTuple

from bench.outcomes import ANSWERED, Ending, Outcome, classify, is_whole
from bench.stats import percentiles

#: The least that a sender sends to learn that its mail is not accepted, whether it is told at once or at MAIL.
DIALOGUE = (b"EHLO bench.example\r\n", b"MAIL FROM:<>\r\n", b"QUIT\r\n")

#: linux/in.h: connect() chooses the port, by the whole 4-tuple.
IP_BIND_ADDRESS_NO_PORT = 24

#: IPv4 loopback: connections come from as many addresses in turn, 28,000 ports each, or TIME_WAIT would use them up.
SOURCES = 16

_RECEIVE = 4096  # a reply is at most 512 octets (RFC 5321 §4.5.3.1.5)
_MAX_REPLY = 1 << 16  # nothing that goes on beyond this is a reply
_BATCH = 256  # connections started before the sockets are served again
_TICK_NS = 100_000_000  # between two checks of time limits
_FINE_NS = 2_000_000  # epoll counts in milliseconds; for less, select() waits, in microseconds
_ALL_FAIL_NS = 1_000_000_000  # after this time with failures and no answer, there is nothing to measure

_EPOLL = select.epoll()  # made before any connection: select() takes no descriptor above 1,023
_GONE = select.EPOLLERR | select.EPOLLHUP | select.EPOLLRDHUP
_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK


class Plan(NamedTuple):
    """What the generator does."""

    targets: tuple[tuple[str, int], ...]  # literal addresses of one family, taken in turn
    family: int = int(socket.AF_INET)
    clients: int = 0  # closed loop: each opens its next connection when the last has ended; 0: open loop
    rate: float = 0.0  # open loop: connections a second, evenly spaced
    connections: int = 1_000_000  # the most to start
    seconds: float = 10.0  # what is due, or has its turn, until then is started
    commands: tuple[bytes, ...] = ()  # a dialogue: each is sent after the whole reply to the one before
    timeout: float = 10.0  # how long one connection may take
    expect: tuple[bytes, ...] = (b"521",)  # what the replies begin with: the greeting's, and one for each command
    max_open: int = 1000  # open connections, so that an overloaded server does not fill the generator's memory


def _times() -> "array[int]":
    return array("q")


@dataclass
class Tally:
    """What the clients saw. Times in nanoseconds."""

    started: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)  # why connect() failed at once, by errno name
    connect: "array[int]" = field(default_factory=_times)  # until the handshake was complete
    first: "array[int]" = field(default_factory=_times)  # until the first octet of the reply
    fin: "array[int]" = field(default_factory=_times)  # until the FIN, of whole answers alone
    late: "array[int]" = field(default_factory=_times)  # open loop: from the scheduled time to connect()
    in_window: int = 0  # connections answered within the window
    window: int = 0  # from the first start until the last or, if sooner, until all had ended
    cpu_share: float = 0.0  # CPU time / wall time of the window
    gave_up: bool = False  # nothing but failures for a second
    interrupted: bool = False

    @property
    def answered(self) -> int:
        """How many connections read every reply."""
        return sum(self.outcomes[outcome] for outcome in ANSWERED)

    @property
    def lost(self) -> int:
        """How many did not."""
        return self.started - self.answered

    @property
    def late_ms(self) -> float:
        """By how much one in a hundred connections of an open loop started late, or by more."""
        return percentiles(self.late, 99)[0] or 0.0


@dataclass(slots=True)
class _Connection:
    socket: SocketType
    since: int  # what its times count from
    started: int
    connected: bool = False
    replies: tuple[bytes, ...] = ()  # the whole ones
    data: bytes = b""  # what came after them


def run(plan: Plan, report: Callable[[Counter[Outcome]], object] = lambda _: None) -> Tally:
    """Carry out the plan and return what came of it; Ctrl-C ends it early.

    ``report`` is called with the outcomes so far, some times a second.
    """
    gc.collect()
    gc.disable()  # nothing here forms cycles
    with contextlib.suppress(OSError):  # proc(5): by default a timer may be 50 µs late, a quarter of what is measured
        Path("/proc/self/timerslack_ns").write_text("1")
    run = _Run(plan, report)
    try:
        run.run()
    except KeyboardInterrupt:
        run.end(time.perf_counter_ns())
        run.tally.interrupted = True
    finally:
        gc.enable()
    return run.tally


class _Run:
    def __init__(self, plan: Plan, report: Callable[[Counter[Outcome]], object]) -> None:
        self.tally = Tally()
        self._plan = plan
        self._report = report
        self._open: dict[int, _Connection] = {}  # in the order of their starts
        due = plan.connections if plan.clients else max(1, round(plan.rate * plan.seconds))
        self._wanted = min(plan.connections, due)
        many = plan.targets[0][0].startswith("127.")
        self._sources = [(f"127.0.0.{1 + n}", 0) for n in range(SOURCES)] if many else []
        self._cpu = time.process_time_ns()
        self._begin = time.perf_counter_ns()
        self._end = self._begin + int(plan.seconds * 1e9)

    def run(self) -> None:
        next_tick = self._begin
        while not self.tally.window or self._open:
            now = time.perf_counter_ns()
            if now >= next_tick:
                next_tick = now + _TICK_NS
                self._on_tick(now)
            if not self.tally.window:
                if self._is_over(now):
                    self._close_window(now)
                else:
                    self._start_due(now)
            self._serve(time.perf_counter_ns())

    def end(self, now: int) -> None:
        """Start nothing more, and leave what is open unfinished."""
        if not self.tally.window:
            self._close_window(now)
        for connection in self._open.values():
            connection.socket.close()
        self._open.clear()

    def _is_over(self, now: int) -> bool:
        """Tell whether nothing more is started.

        An open loop also starts what was due during a stall of the generator, or the times would not show the stall;
        what is late by more than the time limit is left out: there the generator cannot keep up at all.
        """
        enough = self.tally.started >= self._wanted
        late = 0 if self._plan.clients else int(self._plan.timeout * 1e9)
        return (enough and not self._open) or (now >= self._end and (enough or now >= self._end + late))

    def _close_window(self, now: int) -> None:
        planned = 0 if self._plan.clients else int(self._wanted * 1e9 / self._plan.rate)
        self.tally.window = max(now - self._begin, planned if now >= self._end else 1)
        self.tally.in_window = self.tally.answered
        self.tally.cpu_share = (time.process_time_ns() - self._cpu) / self.tally.window

    def _on_tick(self, now: int) -> None:
        horizon = now - int(self._plan.timeout * 1e9)
        while self._open and (oldest := next(iter(self._open.items())))[1].started <= horizon:
            self._finish(*oldest, Ending.TIMEOUT, now)
        self._report(self.tally.outcomes)
        if now > self._begin + _ALL_FAIL_NS and self.tally.outcomes and not self.tally.answered:
            self.tally.gave_up = True
            self.end(now)

    def _serve(self, now: int) -> None:
        """Wait until a socket or the schedule needs something, and serve the sockets."""
        wait = _TICK_NS
        if self._plan.rate and (due := self._due()) is not None:
            wait = max(0, min(wait, due - now))
        if 0 < wait < _FINE_NS:
            select.select([_EPOLL], [], [], wait / 1e9)
            wait = 0
        for descriptor, mask in _EPOLL.poll(wait // 1_000_000 / 1000):
            self._on_event(descriptor, mask)
            if self._plan.clients:
                self._start_due(now)

    def _due(self) -> int | None:
        """Return when the next connection is due, which in a closed loop it always is; None: it may not start yet."""
        limit = self._plan.clients or self._plan.max_open
        if self.tally.window or self.tally.started >= self._wanted or len(self._open) >= limit:
            return None
        return self._begin + (int(self.tally.started / self._plan.rate * 1e9) if self._plan.rate else 0)

    def _start_due(self, now: int) -> None:
        """Start a connection for every client without one, or what is scheduled, however late that is."""
        for _ in range(self._plan.clients or _BATCH):
            if (due := self._due()) is None or due > now:
                return
            self._start(due)

    def _start(self, due: int) -> None:
        """Open one connection; in an open loop its times count from when it was due."""
        plan, number = self._plan, self.tally.started
        self.tally.started += 1
        started = time.perf_counter_ns()
        connection = None
        try:
            connection = SocketType(plan.family, _STREAM, 0)
            if self._sources:
                connection.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                connection.bind(self._sources[number % SOURCES])
            failure = connection.connect_ex(plan.targets[number % len(plan.targets)])
        except OSError as error:  # out of open files, or of ports
            failure = error.errno or errno.EIO
        if connection is None or failure not in {0, errno.EINPROGRESS}:
            if connection:
                connection.close()
            self.tally.outcomes[Outcome.REFUSED if failure == errno.ECONNREFUSED else Outcome.FAILED] += 1
            self.tally.errors[errno.errorcode.get(failure, str(failure))] += 1
            return
        if plan.rate:
            self.tally.late.append(started - due)
        descriptor = connection.fileno()
        self._open[descriptor] = _Connection(connection, due if plan.rate else started, started)
        _EPOLL.register(descriptor, _EVENTS)

    def _on_event(self, descriptor: int, mask: int) -> None:
        now = time.perf_counter_ns()
        connection = self._open[descriptor]
        if not connection.connected and not mask & select.EPOLLERR:
            connection.connected = True
            self.tally.connect.append(now - connection.since)
        if mask & (select.EPOLLIN | _GONE) and (ending := self._receive(connection, mask, now)):
            self._finish(descriptor, connection, ending, now)

    def _receive(self, connection: _Connection, mask: int, now: int) -> Ending | None:
        """Read what is there; return how the connection has ended, or None if it has not."""
        try:
            while data := connection.socket.recv(_RECEIVE):
                if not connection.data and not connection.replies:
                    self.tally.first.append(now - connection.since)
                connection.data += data
                if is_whole(connection.data):
                    self._on_reply(connection)
                if len(connection.data) > _MAX_REPLY or len(connection.replies) > len(self._plan.expect):
                    break
                if not mask & _GONE and len(data) < _RECEIVE:
                    return None  # the FIN will be an event of its own
        except BlockingIOError:
            return None
        except OSError as error:
            known = {errno.ECONNREFUSED: Ending.REFUSED, errno.ETIMEDOUT: Ending.TIMEOUT}
            return known.get(error.errno or 0, Ending.RESET)
        return Ending.FIN

    def _on_reply(self, connection: _Connection) -> None:
        """Send the next command after a whole reply."""
        commands, number = self._plan.commands, len(connection.replies)
        connection.replies += (connection.data,)
        connection.data = b""
        if number < len(commands):
            with contextlib.suppress(OSError):  # recv() tells the same
                connection.socket.send(commands[number])

    def _finish(self, descriptor: int, connection: _Connection, ending: Ending, now: int) -> None:
        del self._open[descriptor]
        connection.socket.close()
        outcome = classify(connection.replies, connection.data, ending, self._plan.expect)
        self.tally.outcomes[outcome] += 1
        if outcome is Outcome.ANSWERED:
            self.tally.fin.append(now - connection.since)
