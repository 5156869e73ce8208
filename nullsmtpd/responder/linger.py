"""How long is an answered connection kept, and how does it end?

A client that spoke before it was answered must not be reset before it has read the line, so a descriptor stays open
after the FIN until the client has closed too, or its time is up. No socket here is registered with epoll: arrival order
is deadline order, so queues and one timer suffice.
"""

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Callable  # noqa: TC003 - ruff misses the annotation of an attribute
from socket import SocketType

from nullsmtpd.runtime.tcp import is_finished

__all__ = ["BUFFER_ERRNOS", "DISCARD_BUFFER", "DRAIN_TIMEOUT", "FIRST_SWEEP", "MAX_DRAINS", "MAX_DRAIN_OCTETS"]
__all__ += ["MIN_LINGER", "SEND_RETRY_DELAY", "SWEEP_INTERVAL", "LingerQueue"]

#: Seconds between two sweeps. While clients arrive, each closes those before it that have finished; the sweep is for
#: the last ones, and for those behind a client that stays. Its wake-up costs as much as a connection: every 0.25 s,
#: that would add 8 % to the cost of each at 50 connections a second. 0.5 s covers a round trip around the Earth.
SWEEP_INTERVAL = 0.5
MIN_SWEEP_INTERVAL = 0.01

#: Seconds from the first client to the first sweep: a burst that follows silence is detected by it, and a client who
#: comes alone has closed by then, unless it is very far away.
FIRST_SWEEP = 0.1

#: Seconds before a client may be evicted: one that was about to speak when it was answered would otherwise be reset
#: before it reads. Others wait in the accept queue meanwhile; 4096 silent clients still let 40,000 a second pass.
MIN_LINGER = 0.1

#: Seconds that a client which still sends at its deadline is drained: its input is read and discarded, as a close()
#: with unread input makes the kernel send RST, which costs a client that is still writing the line. One that sends for
#: longer is not going to read (RFC 5321 §4.5.3.2 clients read at once).
DRAIN_TIMEOUT = 5.0
DRAIN_INTERVAL = 0.05

#: Octets of input that are discarded for one client; more than any mail system sends ahead of the greeting.
MAX_DRAIN_OCTETS = 1 << 20

#: Clients that are drained at once: what they send fills the kernel's receive buffers again and again.
MAX_DRAINS = 1024

#: send(2): the kernel has no buffer at the moment.
BUFFER_ERRNOS = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})

#: Seconds until a send that failed so is retried, for as long as the socket lingers.
SEND_RETRY_DELAY = 0.1

#: All input is read into this buffer and overwritten; one per process, as reads never overlap. It holds as much as an
#: unread socket takes in: net.ipv4.tcp_rmem, which Linux before 6.6 halves for the window.
DISCARD_BUFFER = memoryview(bytearray(1 << 17))
_DONTWAIT = int(socket.MSG_DONTWAIT)
_DONTWAIT_MORE = _DONTWAIT | int(getattr(socket, "MSG_MORE", 0))
_SHUT_WR = int(socket.SHUT_WR)


class LingerQueue:
    """The half-closed sockets, in order of arrival.

    ``seconds``: how long a client may take to close; 0 closes at once. ``limit``: how many sockets there may be, those
    that are drained included. ``on_sweep`` is called at each sweep with the connections per second since the last one,
    and returns whether to sweep once more even if the queue is empty.

    The accept path appends to ``queue`` while it is shorter than ``room``, and calls `start` when ``timer`` is `None`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, limit: int) -> None:
        self.queue: deque[SocketType] = deque()  # arrived since the sweep before last; not checked yet
        self.timer: asyncio.TimerHandle | None = None
        self.cut_short = 0
        self.drained = 0
        self.on_sweep: Callable[[float], bool] = lambda _: False
        self._loop = loop
        self._seconds = seconds
        self._min_linger = min(MIN_LINGER, seconds)
        self._interval = max(MIN_SWEEP_INTERVAL, min(SWEEP_INTERVAL, seconds / 2))
        self._max_drains = min(MAX_DRAINS, limit // 4)
        # Checked once and still open: each with a time at which it had arrived already. Older than all in `queue`.
        self._checked: deque[tuple[float, SocketType]] = deque()
        self._draining: deque[tuple[float, SocketType, int]] = deque()  # deadline, socket, octets left
        self._added = 0  # sockets that were not appended by the accept path, since the start
        self._removed = 0  # sockets that have left `queue`, since the start
        self._swept = 0  # `_removed` plus the length of `queue` at the last sweep
        self._swept_at = 0.0
        self._wait = self._interval  # seconds from the last sweep to the next
        self._rechecked_at = 0.0
        self._limit = limit
        self._update_room()

    @property
    def connections(self) -> int:
        """How many sockets the accept path has ever appended."""
        return self._removed + len(self.queue) - self._added

    @property
    def draining(self) -> int:
        """How many clients are drained now."""
        return len(self._draining)

    def __len__(self) -> int:
        """Return how many sockets linger now, without those that are drained."""
        return len(self.queue) + len(self._checked)

    def add(self, connection: SocketType) -> None:
        """Add a half-closed socket that had a session."""
        self._added += 1
        self.queue.append(connection)
        if self.timer is None:
            self.start()

    def finish(self, connection: SocketType, octets: bytes) -> None:
        """Send the last octets and the FIN; retry while the kernel has no buffer, for as long as the socket lingers."""
        try:
            connection.send(octets, _DONTWAIT_MORE)  # they leave as one segment
            connection.shutdown(_SHUT_WR)
        except OSError as error:  # any other: the client has gone, or its linger time is over (EBADF)
            if error.errno in BUFFER_ERRNOS:
                self._loop.call_later(SEND_RETRY_DELAY, self.finish, connection, octets)

    def start(self) -> None:
        """Start to sweep, as there is something in the queue."""
        if self._seconds == 0:
            self.close_all()
            return
        self._swept_at = self._loop.time()
        self._swept = self._removed  # nothing in the queue is old
        self._wait = min(self._interval, FIRST_SWEEP)
        self.timer = self._loop.call_later(self._wait, self._on_timer)

    def allow_immediate_eviction(self) -> None:
        """Evict sockets of any age from now on: the process shuts down."""
        self._min_linger = 0.0

    def reserve(self) -> bool:
        """Make room for one more socket; return False when all are open and too young to be evicted."""
        now = self._loop.time()
        self._check(len(self.queue), now)
        if self.room <= 0 and now >= self._rechecked_at + MIN_LINGER:
            self.close_all_finished()
            self._rechecked_at = now
        # Several where sessions that ended have exceeded the limit.
        while self.room <= 0 and self._checked and self._checked[0][0] + self._min_linger <= now:
            self._evict_oldest()
        return self.room > 0

    def shed(self) -> None:
        """Close the older half, finished sockets first: file descriptors or memory have run out."""
        target = len(self) // 2
        self.close_all_finished()
        while len(self) > target:
            self._evict_oldest()

    def close_finished(self) -> None:
        """Close finished sockets in `queue`, the oldest ones up to the first that is not."""
        queue = self.queue
        while queue and is_finished(queue[0]):
            queue.popleft().close()
            self._removed += 1

    def close_all_finished(self) -> None:
        """Close every socket that has finished."""
        self._check(len(self.queue), self._loop.time())
        for _ in range(len(self._checked)):
            arrival, connection = self._checked.popleft()
            if is_finished(connection):
                connection.close()
            else:
                self._checked.append((arrival, connection))
        self._update_room()

    def close_all(self) -> None:
        """Close everything, after reading what clients have sent; stop the timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        draining = [connection for _, connection, _ in self._draining]
        checked = [connection for _, connection in self._checked]
        for connection in (*draining, *checked, *self.queue):
            _discard_input(connection)
            connection.close()
        self._removed += len(self.queue)
        self._draining.clear()
        self._checked.clear()
        self.queue.clear()
        self._update_room()

    def _on_timer(self) -> None:
        self.timer = None
        now = self._loop.time()
        is_burst = False
        try:
            self._drain(now)
            if (elapsed := now - self._swept_at) >= 0.9 * self._wait:  # or the timer ran to drain
                self._wait = self._interval
                arrivals = self._removed + len(self.queue) - self._swept
                self._sweep(now)
                is_burst = self.on_sweep(arrivals / elapsed)
        finally:
            if self or self._draining or is_burst:
                interval = min(self._interval, DRAIN_INTERVAL) if self._draining else self._interval
                self.timer = self._loop.call_later(interval, self._on_timer)

    def _sweep(self, now: float) -> None:
        """Close what has finished since the last sweep, and what is past its deadline."""
        self._check(self._swept - self._removed, self._swept_at)
        self.close_finished()
        self._swept, self._swept_at = self._removed + len(self.queue), now
        while self._checked and self._checked[0][0] + self._seconds <= now:
            self._expire(self._checked.popleft()[1], now)
        self._update_room()

    def _check(self, count: int, arrival: float) -> None:
        """Close the finished ones of the first ``count`` in the queue; the others had arrived at ``arrival``."""
        for _ in range(count):
            connection = self.queue.popleft()
            self._removed += 1
            if is_finished(connection):
                connection.close()
            else:
                self._checked.append((arrival, connection))
        self._update_room()

    def _expire(self, connection: SocketType, now: float) -> None:
        """Close a socket at its deadline, or drain it when the client is still sending."""
        if is_finished(connection) or not _discard_input(connection):
            connection.close()
        elif len(self._draining) < self._max_drains:
            self.drained += 1
            self._draining.append((now + DRAIN_TIMEOUT, connection, MAX_DRAIN_OCTETS))
        else:
            self._checked.append((now, connection))  # a further round of lingering

    def _drain(self, now: float) -> None:
        for _ in range(len(self._draining)):
            deadline, connection, octets = self._draining.popleft()
            octets -= _discard_input(connection)
            if is_finished(connection) or now >= deadline or octets < 0:
                connection.close()
            else:
                self._draining.append((deadline, connection, octets))

    def _evict_oldest(self) -> None:
        _, connection = self._checked.popleft()
        if not is_finished(connection):
            self.cut_short += 1
            _discard_input(connection)
        connection.close()
        self._update_room()

    def _update_room(self) -> None:
        self.room = self._limit - len(self._checked) - len(self._draining)


def _discard_input(connection: SocketType) -> int:
    """Read what the client has sent, a receive window at most, so that close() sends no RST; return how many octets."""
    try:
        return connection.recv_into(DISCARD_BUFFER, 0, _DONTWAIT)
    except OSError:
        return 0
