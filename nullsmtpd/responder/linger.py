"""How long is an answered connection kept, and how does it end?

A client that spoke before it was answered must not be reset before it has read the line, so a descriptor stays open
after the FIN until the client has closed too, or its time is up. No socket here is registered with epoll: arrival order
is deadline order, so queues and one timer suffice.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable  # noqa: TC003 - ruff misses the annotation of an attribute
from socket import SocketType

from nullsmtpd.responder.drain import Drains
from nullsmtpd.runtime.tcp import is_finished

__all__ = ["MIN_LINGER", "SWEEP_INTERVAL", "LingerQueue"]

#: Seconds between two sweeps. Most clients finish one round trip after the line, so the sweep after the next closes
#: nearly all; 0.25 s covers a round trip around the Earth.
SWEEP_INTERVAL = 0.25
MIN_SWEEP_INTERVAL = 0.01

#: Seconds before a client may be evicted: one that was about to speak when it was answered would otherwise be reset
#: before it reads. Others wait in the accept queue meanwhile; 4096 silent clients still let 40,000 a second pass.
MIN_LINGER = 0.1

# Read at once from a socket that is closed with unread input: as much as a default receive window holds.
_UNREAD = 1 << 16


class LingerQueue:
    """The half-closed sockets, in order of arrival.

    ``seconds``: how long a client may take to close; 0 closes at once. ``limit``: how many sockets there may be, those
    that are drained included. ``drains`` takes over a socket whose client is still sending at its deadline.
    ``on_sweep`` is called at each sweep with the connections per second since the last one.

    The accept path appends to ``queue`` while it is shorter than ``room``, and calls `start` when ``timer`` is `None`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, drains: Drains, seconds: float, limit: int) -> None:
        self.queue: deque[SocketType] = deque()  # arrived since the sweep before last; not checked yet
        self.timer: asyncio.TimerHandle | None = None
        self.cut_short = 0
        self.on_sweep: Callable[[float], None] = lambda _: None
        self._loop = loop
        self._drains = drains
        self._seconds = seconds
        self._min_linger = min(MIN_LINGER, seconds)
        self._interval = max(MIN_SWEEP_INTERVAL, min(SWEEP_INTERVAL, seconds / 2))
        # Checked once and still open: each with a time at which it had arrived already. Older than all in `queue`.
        self._checked: deque[tuple[float, SocketType]] = deque()
        self._added = 0  # sockets that were not appended by the accept path, since the start
        self._removed = 0  # sockets that have left `queue`, since the start
        self._swept = 0  # `_removed` plus the length of `queue` at the last sweep
        self._swept_at = 0.0
        self._rechecked_at = 0.0
        self._limit = limit
        self._update_room()

    @property
    def connections(self) -> int:
        """How many sockets the accept path has ever appended."""
        return self._removed + len(self.queue) - self._added

    def __len__(self) -> int:
        """Return how many sockets linger now."""
        return len(self.queue) + len(self._checked)

    def add(self, connection: SocketType) -> None:
        """Add a half-closed socket that had a session."""
        self._added += 1
        self.queue.append(connection)
        if self.timer is None:
            self.start()

    def start(self) -> None:
        """Start to sweep, as there is something in the queue."""
        if self._seconds == 0:
            self.close_all()
            return
        self._swept_at = self._loop.time()
        self._swept = self._removed  # nothing in the queue is old
        self.timer = self._loop.call_later(self._interval, self._on_timer)

    def allow_immediate_eviction(self) -> None:
        """Evict sockets of any age from now on: the process shuts down."""
        self._min_linger = 0.0

    def reserve(self) -> bool:
        """Make room for one more socket; return False when all are open and too young to be evicted."""
        now = self._loop.time()
        self._update_room()
        if len(self.queue) >= self.room:
            self._check(len(self.queue), now)
        if len(self.queue) >= self.room and now >= self._rechecked_at + MIN_LINGER:
            self.close_finished(everything=True)
            self._rechecked_at = now
        if len(self.queue) >= self.room and self._checked and self._checked[0][0] + self._min_linger <= now:
            self._evict_oldest()
        return len(self.queue) < self.room

    def shed(self) -> None:
        """Close the older half, finished sockets first: file descriptors or memory have run out."""
        target = len(self) // 2
        self.close_finished(everything=True)
        while len(self) > target:
            self._evict_oldest()

    def close_finished(self, *, everything: bool = False) -> None:
        """Close finished sockets: the oldest ones up to the first that is not, or all of them."""
        queue = self.queue
        if everything:
            self._check(len(queue), self._loop.time())
            for _ in range(len(self._checked)):
                arrival, connection = self._checked.popleft()
                if is_finished(connection):
                    connection.close()
                else:
                    self._checked.append((arrival, connection))
            self._update_room()
            return
        while queue and is_finished(queue[0]):
            queue.popleft().close()
            self._removed += 1

    def close_all(self) -> None:
        """Close everything, after reading what clients have sent; stop the timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        for connection in (*(connection for _, connection in self._checked), *self.queue):
            _read_unread(connection)
            connection.close()
        self._removed += len(self.queue)
        self.queue.clear()
        self._checked.clear()
        self._update_room()

    def _on_timer(self) -> None:
        self.timer = None
        now = self._loop.time()
        arrivals, seconds = self._removed + len(self.queue) - self._swept, now - self._swept_at
        try:
            self._sweep(now)
            self.on_sweep(arrivals / seconds if seconds > 0 else 0.0)
        finally:
            if self.queue or self._checked:
                self.timer = self._loop.call_later(self._interval, self._on_timer)

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
            if is_finished(connection):
                connection.close()
            else:
                self._checked.append((arrival, connection))
        self._removed += max(0, count)
        self._update_room()

    def _expire(self, connection: SocketType, now: float) -> None:
        if is_finished(connection) or not _read_unread(connection):
            connection.close()
        elif not self._drains.try_add(connection):
            # As many are drained as may be: the client gets a further round of lingering.
            self._checked.append((now, connection))

    def _evict_oldest(self) -> None:
        if self._checked:
            _, connection = self._checked.popleft()
        else:
            connection = self.queue.popleft()
            self._removed += 1
        if not is_finished(connection):
            self.cut_short += 1
            _read_unread(connection)
        connection.close()
        self._update_room()

    def _update_room(self) -> None:
        self.room = self._limit - len(self._checked) - len(self._drains)


def _read_unread(connection: SocketType) -> bool:
    """Empty the receive queue, or a window's worth of it, so that close() sends no RST; return whether it held any."""
    try:
        return bool(connection.recv(_UNREAD, socket.MSG_DONTWAIT))
    except OSError:
        return False
