"""The load generator's event loop: one process, raw non-blocking sockets, as little work per connection as Python can.

A connection takes ten system calls: socket, bind and its option when source addresses rotate, connect, epoll_ctl, a
share of epoll_wait, recv twice, close. Registration is edge-triggered and done once.
"""

import contextlib
import errno
import gc
import math
import os
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from socket import SocketType
from typing import NamedTuple

from bench.measure import percentiles
from bench.outcomes import ANSWERED, GREETING, Ending, Outcome, Script, classify, is_whole

#: linux/in.h: connect() chooses the port, by the whole 4-tuple.
IP_BIND_ADDRESS_NO_PORT = 24

#: IPv4 loopback: connections come from as many addresses in turn, 28,000 ports each, or TIME_WAIT would use them up.
SOURCES = 16

_RECEIVE = 4096  # a reply is at most 512 octets (RFC 5321 §4.5.3.1.5)
_MAX_REPLY = 1 << 16  # nothing that goes on beyond this is a reply
_BATCH = 256  # connections started before the sockets are served again
_TICK = 0.1  # seconds between two checks of time limits
_FINE = 0.002  # seconds: epoll counts in milliseconds; for less, select() waits, in microseconds
_ALL_FAIL = 1.0  # seconds: after this time with failures and no answer, there is nothing to measure

_NEVER = math.inf

_EPOLL = select.epoll()  # made before any connection: select() takes no descriptor above 1,023
_GONE = select.EPOLLERR | select.EPOLLHUP | select.EPOLLRDHUP
_READABLE = select.EPOLLIN | _GONE
_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_ENDINGS = {ConnectionRefusedError: Ending.REFUSED, TimeoutError: Ending.TIMEOUT}
_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK

# One connection: it yields its descriptor, and takes each event of epoll with its time.
_Client = Generator[int, tuple[int, float], None]


class Plan(NamedTuple):
    """What the generator does."""

    targets: tuple[tuple[str, int], ...]  # literal addresses of one family, taken in turn
    clients: int = 0  # closed loop: each opens its next connection when the last has ended; 0: open loop
    rate: float = 0.0  # open loop: connections a second, evenly spaced
    connections: int = 1_000_000  # the most to start
    seconds: float = 10.0  # what is due, or has its turn, until then is started
    script: Script = GREETING  # each command is sent after the whole reply to the one before
    timeout: float = 10.0  # how long one connection may take
    max_open: int = 1000  # open connections, so that an overloaded server does not fill the generator's memory


def run(plan: Plan, report: Callable[[Counter[Outcome]], object] = lambda _: None) -> "Run":
    """Carry out the plan and return what came of it; Ctrl-C ends it early.

    ``report`` is called with the outcomes so far, some times a second.
    """
    gc.collect()
    gc.disable()  # nothing here forms cycles
    with contextlib.suppress(OSError):  # proc(5): by default a timer may be 50 µs late, a quarter of what is measured
        Path("/proc/self/timerslack_ns").write_text("1")
    whole = Run(plan, report)
    try:
        whole.run()
    except KeyboardInterrupt:
        whole.interrupted = True
    finally:
        whole.close()
        gc.enable()
    return whole


class Run:
    """The clients of one run, and what they saw. Times in seconds."""

    def __init__(self, plan: Plan, report: Callable[[Counter[Outcome]], object]) -> None:
        self.started = 0
        self.outcomes: Counter[Outcome] = Counter()
        self.errors: Counter[str] = Counter()  # why connect() failed at once, by errno name
        self.connect: list[float] = []  # until the handshake was complete
        self.first: list[float] = []  # until the first octet of the reply
        self.fin: list[float] = []  # until the FIN, of whole answers alone
        self.late: list[float] = []  # open loop: from the scheduled time to connect()
        self.window = 0.0  # from the first start until the last answer or, without one, until the end
        self.cpu_share = 0.0  # CPU time / wall time of the window
        self.gave_up = False  # nothing but failures for a second
        self.interrupted = False
        self._plan = plan
        self._report = report
        self._open: dict[int, tuple[float, _Client]] = {}  # with their starts, in that order
        self._family = socket.AF_INET6 if ":" in plan.targets[0][0] else socket.AF_INET
        many = plan.targets[0][0].startswith("127.")
        self._sources = [(f"127.0.0.{1 + n}", 0) for n in range(SOURCES)] if many else []
        self._cpu, self._begin, self._last_answer = time.process_time(), time.perf_counter(), 0.0
        wanted = min(plan.connections, max(1, round(plan.rate * plan.seconds))) if plan.rate else plan.connections
        self._schedule = (self._begin + (number / plan.rate if plan.rate else 0) for number in range(wanted))
        self._due = next(self._schedule)  # when to start the next connection; in a closed loop, as soon as it may be

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

    def run(self) -> None:
        """Start what is to be started, and serve the sockets until the last has ended or nothing is answered."""
        # An open loop also starts what was due during a stall of the generator, or the times would not show the stall;
        # what is late by more than the time limit is left out: there the generator cannot keep up at all.
        last_start = self._begin + self._plan.seconds + (self._plan.timeout if self._plan.rate else 0)
        next_tick = self._begin
        while (self._open or self._due < _NEVER) and not self.gave_up:
            now = time.perf_counter()
            if now >= last_start:
                self._due = _NEVER
            if now >= next_tick:
                next_tick = now + _TICK
                self._on_tick(now)
            self._start_due(now)
            self._serve(time.perf_counter())

    def close(self) -> None:
        """Leave what is open unfinished."""
        self.window = (self._last_answer or time.perf_counter()) - self._begin
        self.cpu_share = (time.process_time() - self._cpu) / self.window
        for _, client in self._open.values():
            client.close()

    def _on_tick(self, now: float) -> None:
        for descriptor, (started, client) in list(self._open.items()):
            if started > now - self._plan.timeout:
                break
            with contextlib.suppress(StopIteration):
                client.throw(TimeoutError)
            del self._open[descriptor]
        self._report(self.outcomes)
        if now > self._begin + _ALL_FAIL and self.outcomes and not self.answered:
            self.gave_up = True

    def _serve(self, now: float) -> None:
        """Wait until a socket or the schedule needs something, and serve the sockets."""
        wait = _TICK
        if self._plan.rate and len(self._open) < self._plan.max_open:
            wait = min(wait, max(0.0, self._due - now))
        if 0 < wait < _FINE:
            select.select([_EPOLL], [], [], wait)
            wait = 0.0
        for descriptor, mask in _EPOLL.poll(int(wait * 1000) / 1000):  # which would round up
            try:
                self._open[descriptor][1].send((mask, time.perf_counter()))
            except StopIteration:
                del self._open[descriptor]
            if self._plan.clients:
                self._start_due(now)

    def _start_due(self, now: float) -> None:
        """Start a connection for every client without one, or what is scheduled, however late that is."""
        for _ in range(self._plan.clients or _BATCH):
            if self._due > now or len(self._open) >= (self._plan.clients or self._plan.max_open):
                return
            self._start()
            self._due = next(self._schedule, _NEVER)

    def _start(self) -> None:
        started = time.perf_counter()
        self.started += 1
        try:
            connection = self._connect(self.started)
        except OSError as error:  # out of open files or of ports, too
            refused = isinstance(error, ConnectionRefusedError)
            self.outcomes[Outcome.REFUSED if refused else Outcome.FAILED] += 1
            self.errors[errno.errorcode.get(error.errno or 0, str(error.errno))] += 1
            return
        if self._plan.rate:
            self.late.append(started - self._due)
        client = self._client(connection, self._due if self._plan.rate else started)
        descriptor = next(client)
        self._open[descriptor] = started, client
        _EPOLL.register(descriptor, _EVENTS)

    def _connect(self, number: int) -> SocketType:
        connection = SocketType(self._family, _STREAM, 0)
        if self._sources:
            connection.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            connection.bind(self._sources[number % SOURCES])
        failure = connection.connect_ex(self._plan.targets[number % len(self._plan.targets)])
        if failure not in {0, errno.EINPROGRESS}:
            connection.close()
            raise OSError(failure, os.strerror(failure))
        return connection

    def _client(self, connection: SocketType, since: float) -> _Client:
        """Be the client of one connection until its outcome is counted; ``since``: what its times count from."""
        script = self._plan.script
        replies: tuple[bytes, ...] = ()  # the whole ones that were due
        data, ending = b"", Ending.FIN
        try:
            mask, now = yield connection.fileno()
            if not mask & select.EPOLLERR:
                self.connect.append(now - since)
            while len(data) <= _MAX_REPLY:
                part = _receive(connection, mask)
                if part is None:
                    mask, now = yield connection.fileno()
                    continue
                if not part:
                    break
                if not data and not replies:
                    self.first.append(now - since)
                data += part
                if len(replies) < len(script) and is_whole(data):
                    replies, data = (*replies, data), b""
                    _send(connection, script[len(replies) :])
                if len(part) < _RECEIVE and not mask & _GONE:
                    mask = 0  # the FIN will be an event of its own
        except OSError as error:
            ending = _ENDINGS.get(type(error), Ending.RESET)
        finally:
            connection.close()
        outcome = classify(replies, data, ending, script)
        self.outcomes[outcome] += 1
        if outcome is Outcome.ANSWERED:
            self._last_answer = now
            self.fin.append(now - since)


def _receive(connection: SocketType, mask: int) -> bytes | None:
    """Return what has come, ``b""`` after the FIN, and None for nothing yet."""
    try:
        return connection.recv(_RECEIVE) if mask & _READABLE else None
    except BlockingIOError:
        return None


def _send(connection: SocketType, script: Script) -> None:
    if script:
        with contextlib.suppress(OSError):  # recv() tells the same
            connection.send(script[0][0])
