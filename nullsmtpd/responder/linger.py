"""How long is an answered connection kept, and how does it end?

close(2) with unread input makes the kernel send RST, which may cost a client that spoke before it was answered the
line. So a descriptor stays open after the FIN until the client has closed too, or its time is up. No socket here is
registered with epoll: arrival order is deadline order, so queues and one timer suffice.
"""

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Callable  # noqa: TC003 - ruff misses the annotation of an attribute
from socket import SocketType

from nullsmtpd.runtime.tcp import peer_has_closed

__all__ = ["BUFFER_ERRNOS", "DISCARD_BUFFER", "DRAIN_TIMEOUT", "FIRST_SWEEP", "MAX_DRAINS", "MAX_DRAIN_OCTETS"]
__all__ += ["MIN_LINGER", "SEND_FLAGS", "SEND_RETRY_DELAY", "SWEEP_INTERVAL", "LingerQueue"]

#: Seconds between two sweeps. While clients arrive, each arrival closes sockets at the head of the queue; the sweep is
#: for the last ones, and for those behind a client that stays open. A sweep costs about as much as a connection: one
#: every 0.25 s would add 8 % at 50 connections a second. 0.5 s covers a round trip around the Earth.
SWEEP_INTERVAL = 0.5
MIN_SWEEP_INTERVAL = 0.01  # for a linger time below 0.02 s

#: Seconds from the first client to the first sweep: short, so that a burst after silence is noticed soon. A client that
#: comes alone has usually closed by then.
FIRST_SWEEP = 0.1

#: Minimum age in seconds for eviction: a client that was about to speak when it was answered would lose the line.
#: Meanwhile new clients wait in the accept queue; 4,096 places still let 40,000 clients a second pass.
MIN_LINGER = 0.1

#: Seconds that a client which still sends at its deadline is drained: its input is read and discarded, as it would be
#: reset otherwise, perhaps before it reads the line. One that sends for longer is not going to read.
DRAIN_TIMEOUT = 5.0
DRAIN_INTERVAL = 0.05  # between two reads: 1 MiB in 5 s is 10 KiB each

#: Octets of input that are discarded for one client; more than any mail system sends ahead of the greeting.
MAX_DRAIN_OCTETS = 1 << 20

#: Clients that are drained at the same time, as the input of each one is copied.
MAX_DRAINS = 1024

#: send(2): the kernel has no buffer at the moment.
BUFFER_ERRNOS = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})

#: Seconds until such a send is retried, for as long as the socket lingers.
SEND_RETRY_DELAY = 0.1

#: All input is read into this buffer and overwritten; one per process, as reads never overlap. 128 KiB is the default
#: of net.ipv4.tcp_rmem: all that the kernel keeps for a socket that nobody reads.
DISCARD_BUFFER = memoryview(bytearray(1 << 17))

#: Flags for the last octets of a connection: shutdown(2) sends what MSG_MORE keeps back, with the FIN in one segment.
#: Not TCP_CORK on the listener, which shutdown(2) does not flush on Multipath TCP (RFC 8684). MSG_DONTWAIT: of the
#: sockets the listeners alone are non-blocking.
SEND_FLAGS = int(socket.MSG_DONTWAIT) | int(getattr(socket, "MSG_MORE", 0))


class LingerQueue:
    """The half-closed sockets, in order of arrival.

    ``seconds``: how long a client may take to close; 0 closes at once. ``limit``: how many sockets there may be, those
    that are drained included. ``on_sweep`` is called at each sweep with the sockets per second that were appended since
    the last one, and returns whether to sweep once more even if the queue is empty.

    The accept path appends to ``queue`` if there are fewer sockets than ``limit`` or `reserve` makes room, and calls
    `start` when ``timer`` is `None`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, limit: int) -> None:
        self.limit = limit
        self.queue: deque[SocketType] = deque()  # appended after the last sweep but one; not checked yet
        # Checked once and still open, with an upper bound of the time of arrival. All are older than those in `queue`.
        self.checked: deque[tuple[float, SocketType]] = deque()
        self.draining: deque[tuple[float, SocketType, int]] = deque()  # deadline, socket, octets left
        self.timer: asyncio.TimerHandle | None = None
        self.cut_short = 0
        self.drained = 0
        self.on_sweep: Callable[[float], bool] = lambda _: False
        self._loop = loop
        self._seconds = seconds
        self._min_linger = min(MIN_LINGER, seconds)
        self._interval = max(MIN_SWEEP_INTERVAL, min(SWEEP_INTERVAL, seconds / 2))
        self._max_drains = min(MAX_DRAINS, limit // 4)
        self._removed = 0  # sockets that have left `queue`, since the start
        self._sessions = 0  # sockets that `add` has appended, since the start
        self._appended_at_sweep = 0  # `_appended` at the last sweep
        self._sweep_time = 0.0  # of the last sweep
        self._recheck_time = 0.0  # of the last search in `checked` for room

    @property
    def connections(self) -> int:
        """How many sockets the accept path has ever appended."""
        return self._appended - self._sessions

    @property
    def _appended(self) -> int:
        return self._removed + len(self.queue)

    @property
    def _is_full(self) -> bool:
        return len(self) + len(self.draining) >= self.limit

    def __len__(self) -> int:
        """Return how many sockets linger now, without those that are drained."""
        return len(self.queue) + len(self.checked)

    def add(self, connection: SocketType, octets: bytes) -> None:
        """Send the last octets of a session and the FIN, and append the socket, even beyond the limit."""
        self.send_last(connection, octets)
        self._sessions += 1
        self.queue.append(connection)
        if self.timer is None:
            self.start()

    def send_last(self, connection: SocketType, octets: bytes) -> None:
        """Send the last octets and the FIN; retry while the kernel has no buffer, for as long as the socket lingers."""
        try:
            connection.send(octets, SEND_FLAGS)
            connection.shutdown(socket.SHUT_WR)
        except OSError as error:  # any other: the client has gone, or its linger time is over (EBADF)
            if error.errno in BUFFER_ERRNOS:
                self._loop.call_later(SEND_RETRY_DELAY, self.send_last, connection, octets)

    def start(self) -> None:
        """Start to sweep, as there is something in the queue."""
        if self._seconds == 0:
            self.close_all()
            return
        self._sweep_time = self._loop.time()
        self._appended_at_sweep = self._removed  # nothing in the queue was there at an earlier sweep
        self.timer = self._loop.call_later(min(self._interval, FIRST_SWEEP), self._on_timer)

    def allow_immediate_eviction(self) -> None:
        """Evict sockets of any age from now on: the process shuts down."""
        self._min_linger = 0.0

    def reserve(self) -> bool:
        """Make room for one more socket; return False when all are open, and the oldest is too young to be evicted."""
        now = self._loop.time()
        self._check(len(self.queue), now)
        if self._is_full and now >= self._recheck_time + MIN_LINGER:  # seldom, as it takes a system call for each
            self._recheck()
            self._recheck_time = now
        # More than one where the sockets of sessions have exceeded the limit.
        while self._is_full and self.checked and self.checked[0][0] + self._min_linger <= now:
            self._evict_oldest()
        return not self._is_full

    def shed(self) -> None:
        """Close the older half, those whose client has closed first: file descriptors or memory have run out."""
        target = len(self) // 2
        self.sweep_all()
        while len(self) > target:
            self._evict_oldest()

    def close_head(self) -> None:
        """Close the oldest sockets in `queue` whose client has closed, up to the first whose client has not."""
        queue = self.queue
        while queue and peer_has_closed(queue[0]):
            queue.popleft().close()
            self._removed += 1

    def sweep_all(self) -> None:
        """Close every socket whose client has closed."""
        self._recheck()
        self._check(len(self.queue), self._loop.time())

    def close_all(self) -> None:
        """Close everything, after reading what clients have sent; stop the timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        draining = [connection for _, connection, _ in self.draining]
        checked = [connection for _, connection in self.checked]
        for connection in (*draining, *checked, *self.queue):
            _discard_input(connection)
            connection.close()
        self._removed += len(self.queue)
        self.draining.clear()
        self.checked.clear()
        self.queue.clear()

    def _on_timer(self) -> None:
        self.timer = None
        now = self._loop.time()
        arrivals_per_second = (self._appended - self._appended_at_sweep) / (now - self._sweep_time)
        is_needed = False
        try:
            self._sweep(now)
            is_needed = self.on_sweep(arrivals_per_second)
        finally:
            if self or is_needed:
                self.timer = self._loop.call_later(self._interval, self._on_timer)

    def _sweep(self, now: float) -> None:
        """Close sockets whose client has closed since the last sweep, and those past their deadline."""
        self._check(self._appended_at_sweep - self._removed, self._sweep_time)
        self.close_head()
        self._appended_at_sweep, self._sweep_time = self._appended, now
        while self.checked and self.checked[0][0] + self._seconds <= now:
            self._expire(self.checked.popleft()[1], now)

    def _check(self, count: int, arrival: float) -> None:
        """Check the first ``count`` in the queue, none if it is negative; those still open arrived by ``arrival``."""
        for _ in range(count):
            self._removed += 1
            self._close_or_keep(arrival, self.queue.popleft())

    def _recheck(self) -> None:
        for _ in range(len(self.checked)):
            self._close_or_keep(*self.checked.popleft())

    def _close_or_keep(self, arrival: float, connection: SocketType) -> None:
        if peer_has_closed(connection):
            connection.close()
        else:
            self.checked.append((arrival, connection))

    def _expire(self, connection: SocketType, now: float) -> None:
        """Close a socket at its deadline, or drain it when the client is still sending."""
        if peer_has_closed(connection) or not _discard_input(connection):
            connection.close()
        elif len(self.draining) < self._max_drains:
            self.drained += 1
            self.draining.append((now + DRAIN_TIMEOUT, connection, MAX_DRAIN_OCTETS))
            if len(self.draining) == 1:
                self._loop.call_later(DRAIN_INTERVAL, self._drain)
        else:
            self.checked.append((now, connection))  # linger once more

    def _drain(self) -> None:
        now = self._loop.time()
        for _ in range(len(self.draining)):
            deadline, connection, octets = self.draining.popleft()
            octets -= _discard_input(connection)
            if peer_has_closed(connection) or now >= deadline or octets < 0:
                connection.close()
            else:
                self.draining.append((deadline, connection, octets))
        if self.draining:
            self._loop.call_later(DRAIN_INTERVAL, self._drain)

    def _evict_oldest(self) -> None:
        _, connection = self.checked.popleft()
        if not peer_has_closed(connection):
            self.cut_short += 1
            _discard_input(connection)
        connection.close()


def _discard_input(connection: SocketType) -> int:
    """Read what the client has sent, a receive window at most, so that close() sends no RST; return how many octets."""
    try:
        return connection.recv_into(DISCARD_BUFFER, 0, socket.MSG_DONTWAIT)
    except OSError:
        return 0
