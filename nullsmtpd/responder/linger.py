"""Which answered connections are kept half-closed, for how long, and how they are let go.

A client that spoke before it was answered must not be reset before it has read the line, so a descriptor stays open
after the FIN until the client has closed too, or its time is up. No socket here is registered with the event loop:
arrival order is deadline order, so two queues and one timer do.
"""

import asyncio
import math
import socket
from collections import deque
from socket import SocketType

from nullsmtpd.responder.counters import Counters
from nullsmtpd.responder.drain import Drains
from nullsmtpd.runtime.tcp import is_finished

__all__ = ["FIRST_LOOK", "KEPT_AT_LEAST", "Lingering"]

#: Seconds after which one client that is still there no longer stands for those behind it. Most clients finish one
#: round trip after the line, in the order in which they came, so the oldest is asked first and its "not yet" is taken
#: for the others' too; 0.25 s covers a round trip around the Earth.
FIRST_LOOK = 0.25

#: Seconds that a client is kept even when there are too many: one that was about to speak when it was answered would be
#: reset before it reads. Others wait in the backlog meanwhile; 4096 clients that stay still let 40,000 a second pass.
KEPT_AT_LEAST = 0.1

# At once out of the receive queue of a socket that is to be closed: as much as a default window holds.
_UNREAD = 1 << 16

Batch = list[SocketType]


class Lingering:
    """The half-closed sockets, in batches of one accept burst each: ``(time of arrival, sockets)``.

    ``seconds``: how long a client may take; 0 closes at once. ``limit``: how many sockets there may be, drained ones
    included. ``drains`` takes over a socket whose client is still sending when its time is up.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, counters: Counters, drains: Drains, seconds: float, limit: int
    ) -> None:
        """Keep nothing yet."""
        self.limit = limit
        self._loop = loop
        self._counters = counters
        self._drains = drains
        self._seconds = seconds
        self._first_look = min(FIRST_LOOK, seconds)
        self._kept_at_least = min(KEPT_AT_LEAST, seconds)
        self._fresh: deque[tuple[float, Batch]] = deque()  # not looked at yet
        self._slow: deque[tuple[float, Batch]] = deque()  # looked at once and still open; older than every fresh one
        self._timer: asyncio.Handle | None = None
        self._timer_due = math.inf

    def __len__(self) -> int:
        """Return how many sockets linger now."""
        return self._counters.lingering

    def add(self, batch: Batch) -> None:
        """Keep a burst of connections that were answered and half-closed just now; `let_go` is due after it."""
        if self._seconds == 0:
            for connection in batch:
                connection.close()
            return
        self._counters.lingering += len(batch)
        self._fresh.append((self._loop.time(), batch))

    def make_room(self, wanted: int) -> int:
        """Return how many of ``wanted`` further sockets may be added now: the oldest, once old enough, make room."""
        wanted = max(1, min(wanted, self.limit // 2))
        if self._excess(wanted) > 0:
            self._look_at_fresh(everything=True)
            self._cut_short(self._excess(wanted), until=self._loop.time() - self._kept_at_least)
        if self._excess(wanted) > 0:
            self.look_at_all()
        return wanted - max(0, min(wanted, self._excess(wanted)))

    def hurry(self) -> None:
        """From now on make room at once, however young the oldest is: the process is to end."""
        self._kept_at_least = 0.0

    def shed(self) -> None:
        """Close the older half of what lingers: descriptors or memory have run out."""
        self._cut_short((self._counters.lingering + 1) // 2, until=self._loop.time())

    def let_go(self) -> None:
        """Close what has finished and what has had its time; called with every burst, and by the timer in between."""
        self._look_at_fresh()
        now = self._loop.time()
        while self._slow and self._slow[0][0] + self._seconds <= now:
            self._expire(self._slow.popleft()[1])
        self._set_timer(self._next_due())

    def look_at_all(self) -> None:
        """Close every connection whose client has finished, however young."""
        self._look_at_fresh(everything=True)
        slow, self._slow = self._slow, deque()
        for arrival, batch in slow:
            if unfinished := self._close_finished(batch):
                self._slow.append((arrival, unfinished))

    def close_all(self) -> None:
        """Close everything, unread input read first; the timer is stopped."""
        if self._timer is not None:
            self._timer.cancel()
        for queue in (self._slow, self._fresh):
            while queue:
                self._close(queue.popleft()[1])

    def _next_due(self) -> float:
        """Return when the next look is due; never, when nobody lingers."""
        look = self._fresh[0][0] + self._first_look if self._fresh else math.inf
        end = self._slow[0][0] + self._seconds if self._slow else math.inf
        return min(look, end)

    def _set_timer(self, due: float) -> None:
        """Look again at ``due``, or when a timer set before comes earlier."""
        if due < self._timer_due:
            if self._timer is not None:
                self._timer.cancel()
            # Its time is kept here: for less than half a millisecond uvloop gives a handle that knows none.
            self._timer, self._timer_due = self._loop.call_at(due, self._on_timer), due

    def _on_timer(self) -> None:
        self._timer, self._timer_due = None, math.inf
        self.let_go()

    def _excess(self, wanted: int) -> int:
        return self._counters.lingering + len(self._drains) + wanted - self.limit

    def _cut_short(self, count: int, until: float) -> None:
        """Close the oldest ``count`` sockets, as far as they arrived at ``until`` or before."""
        while count > 0 and (queue := self._slow or self._fresh) and queue[0][0] <= until:
            arrival, batch = queue.popleft()
            if batch[count:]:
                queue.appendleft((arrival, batch[count:]))
            del batch[count:]
            count -= len(batch)
            self._counters.cut_short += len(batch)
            self._close(batch)

    def _look_at_fresh(self, *, everything: bool = False) -> None:
        now = self._loop.time()
        while self._fresh:
            arrival, batch = self._fresh[0]
            if everything or arrival + self._first_look <= now:
                del self._fresh[0]
                if unfinished := self._close_finished(batch):
                    self._slow.append((arrival, unfinished))
            elif self._close_leading(batch):
                del self._fresh[0]
            else:
                return

    def _close_leading(self, batch: Batch) -> bool:
        """Close the finished connections up to the first that is not; tell whether that was all of them."""
        finished = 0
        for connection in batch:
            if not is_finished(connection):
                break
            connection.close()
            finished += 1
        del batch[:finished]
        self._counters.lingering -= finished
        return not batch

    def _close_finished(self, batch: Batch) -> Batch:
        """Close the finished connections; return the others."""
        unfinished = []
        for connection in batch:
            if is_finished(connection):
                connection.close()
            else:
                unfinished.append(connection)
        self._counters.lingering -= len(batch) - len(unfinished)
        return unfinished

    def _expire(self, batch: Batch) -> None:
        for connection in self._close_finished(batch):
            if not _read_unread(connection):
                connection.close()
            elif not self._drains.take(connection):
                # Every drain is taken: a further round of lingering, if the queue is long enough for it.
                self._fresh.append((self._loop.time(), [connection]))
                continue
            self._counters.lingering -= 1

    def _close(self, batch: Batch) -> None:
        for connection in batch:
            _read_unread(connection)
            connection.close()
        self._counters.lingering -= len(batch)


def _read_unread(connection: SocketType) -> bool:
    """Empty the receive queue, or a window's worth of it, so that close() sends no RST; tell whether it held any."""
    try:
        return bool(connection.recv(_UNREAD, socket.MSG_DONTWAIT))
    except OSError:
        return False
