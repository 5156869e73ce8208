"""The load generator's event loop: one process, raw non-blocking sockets, as little work per connection as Python can.

A connection costs the client nine system calls: socket, bind and its option when source addresses rotate, connect,
epoll_ctl, its share of epoll_wait, recv twice, close. Registration is edge-triggered and done once, timings go into
arrays, and histograms are made of them when the run is over.
"""

import contextlib
import errno
import gc
import select
import socket
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable
from socket import SocketType
from typing import NamedTuple

from bench.latency import Latencies
from bench.outcomes import ANSWERED, Ending, Outcome, classify, classify_dialogue, is_whole

__all__ = ["DIALOGUE", "EARLY", "IP_BIND_ADDRESS_NO_PORT", "Plan", "Tally", "run"]

#: What a client that speaks first says.
EARLY = b"EHLO bench.example\r\n"

#: The least that a sender says to learn that its mail is not accepted, whether it is told at once or at MAIL.
DIALOGUE = (EARLY, b"MAIL FROM:<>\r\n", b"QUIT\r\n")

#: linux/in.h: let connect() choose the port, by the whole 4-tuple.
IP_BIND_ADDRESS_NO_PORT = 24

_RECEIVE = 4096  # a reply is at most 512 octets (RFC 5321 §4.5.3.1.5)
_MAX_REPLY = 1 << 16  # nothing that goes on beyond this is a reply
_TURN = 256  # connections started before the sockets get their turn again
_TICK_NS = 100_000_000  # between two looks at time limits
_FINE_NS = 2_000_000  # epoll counts in milliseconds; what is due sooner is waited for by select(), in microseconds

_IN, _OUT, _ERROR, _HUP = select.POLLIN, select.POLLOUT, select.POLLERR, select.POLLHUP
if sys.platform == "linux":
    _HAS_EPOLL = True
    _RDHUP, _EDGE = select.EPOLLRDHUP, select.EPOLLET
    _new_poller = select.epoll
else:
    _HAS_EPOLL = False
    _RDHUP, _EDGE = 0, 0
    _new_poller = select.poll
_SECOND = 1 if _HAS_EPOLL else 1000  # in the unit of the poller's timeout
_GONE = _ERROR | _HUP | _RDHUP
_STREAM = int(socket.SOCK_STREAM) | int(getattr(socket, "SOCK_NONBLOCK", 0))


class Plan(NamedTuple):
    """What one generator process is to do."""

    targets: tuple[tuple[str, int], ...]  # literal addresses of one family, taken in turn
    family: int = int(socket.AF_INET)
    clients: int = 0  # closed loop: each opens its next connection when the last has ended; 0: open loop
    rate: float = 0.0  # open loop: connections a second, evenly spaced
    phase: float = 0.0  # open loop: seconds by which this process is shifted against the first
    connections: int = 1_000_000  # the most to start
    seconds: float = 10.0  # what is due, or has its turn, until then is started
    early: float = 0.0  # share of clients that speak first
    commands: tuple[bytes, ...] = ()  # a dialogue: each is said after the whole reply to the one before
    sources: int = 0  # source addresses 127.0.0.1 … .N in turn; 0: the kernel's choice
    timeout: float = 10.0  # how long one connection may take
    expect: tuple[bytes, ...] = (b"521",)  # what the replies begin with: the greeting's, and one for each command
    max_open: int = 1000  # descriptors for connections
    start_at: int = 0  # time.perf_counter_ns() at which all processes begin


class Tally(NamedTuple):
    """What one generator process, or all of them together, saw."""

    started: int
    outcomes: Counter[Outcome]
    not_started: Counter[str]  # why connect() failed at once, by errno name
    connect: Latencies  # until the handshake was complete
    first: Latencies  # until the first octet of the reply
    fin: Latencies  # until the FIN, of whole lines, or dialogues, alone
    late: Latencies  # open loop: from the scheduled time to connect(): the generator's own delay
    completed: int  # whole lines, or dialogues, within the window
    window_ns: int  # from the first start until the last or, if sooner, until all had ended
    cpu_share: float  # CPU time / wall time of the window; of several processes: the busiest
    at_limit: int  # how often `max_open` was reached


class _Connection:
    __slots__ = ("connected", "data", "early", "first", "replies", "since", "socket", "started")

    def __init__(self, connection: SocketType, since: int, started: int, early: bool) -> None:  # noqa: FBT001
        self.socket = connection
        self.since = since
        self.started = started
        self.early = early
        self.connected = 0
        self.first = 0
        self.data = b""
        self.replies: tuple[bytes, ...] = ()  # of a dialogue, the whole ones; what comes after them is in data


def run(plan: Plan, stopped: Callable[[], bool]) -> Tally:
    """Carry out the plan and return what came of it; ends early once ``stopped()`` is true."""
    gc.collect()
    gc.disable()  # nothing here forms cycles
    try:
        return _Run(plan, stopped).run()
    finally:
        gc.enable()


class _Run:
    def __init__(self, plan: Plan, stopped: Callable[[], bool]) -> None:
        self._plan = plan
        self._stopped = stopped
        self._poller = _new_poller()
        self._open: dict[int, _Connection] = {}  # in the order of their starts
        self._started = 0
        self._early_owed = 0.0
        self._sources = [(f"127.0.0.{1 + n}", 0) for n in range(plan.sources)]
        self._outcomes: Counter[Outcome] = Counter()
        self._known: dict[tuple[bytes, tuple[bytes, ...], Ending], Outcome] = {}
        self._not_started: Counter[str] = Counter()
        self._connect, self._first, self._fin, self._late = array("q"), array("q"), array("q"), array("q")
        self._at_limit = 0
        self._interval = 1e9 / plan.rate if plan.rate else 0.0
        self._begin = 0
        self._end = 0
        self._due = 0

    def run(self) -> Tally:
        time.sleep(max(0, self._plan.start_at - time.perf_counter_ns()) / 1e9)
        cpu = time.process_time_ns()
        self._begin = max(self._plan.start_at, time.perf_counter_ns())
        self._end = self._begin + int(self._plan.seconds * 1e9)
        window_ns = self._start_and_answer()
        cpu_share = (time.process_time_ns() - cpu) / max(window_ns, 1)
        completed = sum(self._outcomes[outcome] for outcome in ANSWERED)
        self._wait_for_the_rest()
        return Tally(
            self._started,
            self._outcomes,
            self._not_started,
            Latencies(self._connect),
            Latencies(self._first),
            Latencies(self._fin),
            Latencies(self._late),
            completed,
            window_ns,
            cpu_share,
            self._at_limit,
        )

    def _start_and_answer(self) -> int:
        """Start connections until the plan says enough; return how long that took in nanoseconds."""
        plan, clock = self._plan, time.perf_counter_ns
        start_more = self._keep_clients if plan.clients else self._keep_rate
        next_tick = self._begin
        while True:
            now = clock()
            if now >= next_tick:
                next_tick = now + _TICK_NS
                self._time_out(now)
            enough = self._started >= plan.connections
            if now >= self._end or self._stopped() or (enough and not self._open):
                break
            if not enough:
                start_more(now)
            self._turn(clock())
        if not plan.clients:
            self._start_overdue()
        return clock() - self._begin

    def _turn(self, now: int) -> None:
        """Wait until a socket or the schedule has something to do, and do what the sockets have."""
        wait_ns = _TICK_NS
        if self._interval and self._started < self._plan.connections and len(self._open) < self._plan.max_open:
            wait_ns = max(0, min(wait_ns, self._due - now))
        if _HAS_EPOLL and 0 < wait_ns < _FINE_NS:
            select.select([self._poller], [], [], wait_ns / 1e9)
            wait_ns = 0
        for descriptor, mask in self._poller.poll(wait_ns // 1_000_000 / 1000 * _SECOND):
            self._on_event(descriptor, mask)
            if self._plan.clients and self._started < self._plan.connections and len(self._open) < self._plan.clients:
                self._start(time.perf_counter_ns())

    def _keep_clients(self, now: int) -> None:
        for _ in range(min(self._plan.clients - len(self._open), self._plan.connections - self._started)):
            self._start(time.perf_counter_ns())

    def _keep_rate(self, now: int) -> bool:
        """Start what is due, each with its own scheduled time, however late that is; return whether more may be due."""
        plan = self._plan
        for _ in range(_TURN):
            self._due = self._begin + int(plan.phase * 1e9 + self._started * self._interval)
            if self._due > now or self._due >= self._end or self._started >= plan.connections:
                return False
            if len(self._open) >= plan.max_open:
                self._at_limit += 1
                return False
            self._start(self._due)
        return True

    def _start_overdue(self) -> None:
        """Start what was due before the end but came in a stall, or the times would not tell of the stall.

        What is late by more than the time limit is left out: there the generator cannot keep up at all.
        """
        latest = self._end + int(self._plan.timeout * 1e9)
        while not self._stopped() and (now := time.perf_counter_ns()) < latest:
            if not self._keep_rate(min(now, self._end)):
                return
            self._turn(now)

    def _start(self, since: int) -> None:
        """Open one connection whose times count from ``since``."""
        plan, number = self._plan, self._started
        self._started += 1
        self._early_owed += plan.early
        early = self._early_owed >= 1
        self._early_owed -= early
        try:
            connection = SocketType(plan.family, _STREAM, 0)
        except OSError as error:  # out of descriptors
            self._fail(error.errno)
            return
        started = time.perf_counter_ns()
        try:
            if not _HAS_EPOLL:  # elsewhere SOCK_NONBLOCK is no part of the type
                connection.setblocking(False)
            if self._sources:
                if sys.platform == "linux":
                    connection.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                connection.bind(self._sources[number % len(self._sources)])
            failure = connection.connect_ex(plan.targets[number % len(plan.targets)])
        except OSError as error:
            failure = error.errno or errno.EIO
        if failure not in {0, errno.EINPROGRESS}:
            connection.close()
            self._fail(failure)
            return
        if plan.rate:
            self._late.append(started - since)
        descriptor = connection.fileno()
        self._open[descriptor] = _Connection(connection, since, started, early)
        self._poller.register(descriptor, _IN | _OUT | _RDHUP | _EDGE)

    def _fail(self, number: int | None) -> None:
        if number == errno.ECONNREFUSED:
            self._outcomes[Outcome.REFUSED] += 1
        else:
            self._outcomes[Outcome.FAILED] += 1
            self._not_started[errno.errorcode.get(number or 0, str(number))] += 1

    def _on_event(self, descriptor: int, mask: int) -> None:
        now = time.perf_counter_ns()
        connection = self._open[descriptor]
        if not connection.connected and not mask & _ERROR:
            connection.connected = now
            self._connect.append(now - connection.since)
            if not _HAS_EPOLL:
                self._poller.modify(descriptor, _IN)
            if connection.early:
                with contextlib.suppress(OSError):  # recv() tells the same
                    connection.socket.send(EARLY)
        if mask & (_IN | _GONE):
            ending = self._receive(connection, mask, now)
            if ending is not None:
                self._finish(descriptor, connection, ending, now)

    def _receive(self, connection: _Connection, mask: int, now: int) -> Ending | None:  # noqa: PLR0911 - one for each end
        """Read what is there; return how the connection has ended, or None if it has not."""
        try:
            while data := connection.socket.recv(_RECEIVE):
                if not connection.first:
                    connection.first = now
                    self._first.append(now - connection.since)
                connection.data += data
                if self._plan.commands:
                    self._say_next(connection)
                if len(connection.data) > _MAX_REPLY:
                    return Ending.FIN
                if not mask & _GONE and len(data) < _RECEIVE:
                    return None  # the FIN will be an event of its own
        except BlockingIOError:
            return None
        except ConnectionRefusedError:
            return Ending.REFUSED
        except TimeoutError:
            return Ending.TIMEOUT
        except OSError:
            return Ending.RESET
        return Ending.FIN

    def _say_next(self, connection: _Connection) -> None:
        """Say the next command once the reply is whole; one that was not asked for stays, and makes the whole wrong."""
        said = len(connection.replies)
        if said > len(self._plan.commands) or not is_whole(connection.data):
            return
        connection.replies += (connection.data,)
        connection.data = b""
        if said < len(self._plan.commands):
            with contextlib.suppress(OSError):  # recv() tells the same
                connection.socket.send(self._plan.commands[said])

    def _finish(self, descriptor: int, connection: _Connection, ending: Ending, now: int) -> None:
        del self._open[descriptor]
        if not _HAS_EPOLL:
            self._poller.unregister(descriptor)
        connection.socket.close()
        seen = (connection.data, connection.replies, ending)
        outcome = self._known.get(seen)
        if outcome is None:
            outcome = self._classify(connection, ending)
            if len(self._known) < _TURN:  # a server with a different reply each time must not fill the memory
                self._known[seen] = outcome
        self._outcomes[outcome] += 1
        if outcome is Outcome.LINE_FIN:
            self._fin.append(now - connection.since)

    def _classify(self, connection: _Connection, ending: Ending) -> Outcome:
        if self._plan.commands:
            return classify_dialogue(connection.replies, connection.data, ending, self._plan.expect)
        return classify(connection.data, ending, self._plan.expect[0])

    def _time_out(self, now: int) -> None:
        horizon = now - int(self._plan.timeout * 1e9)
        while self._open:
            descriptor = next(iter(self._open))
            if self._open[descriptor].started > horizon:
                return
            self._finish(descriptor, self._open[descriptor], Ending.TIMEOUT, now)

    def _wait_for_the_rest(self) -> None:
        """Let what has begun end; a second stop, or the time limit, cuts it off."""
        begun = time.perf_counter_ns()
        patience = 0 if self._stopped() else int(self._plan.timeout * 1e9)
        while self._open and time.perf_counter_ns() < begun + patience:
            for descriptor, mask in self._poller.poll(0.05 * _SECOND):
                self._on_event(descriptor, mask)
            if self._stopped():
                break
        for connection in self._open.values():
            connection.socket.close()
            if not self._stopped():
                self._outcomes[Outcome.TIMEOUT] += 1
        if _HAS_EPOLL:
            self._poller.close()
