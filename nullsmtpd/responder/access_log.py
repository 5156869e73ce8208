"""The access log: one line a connection, less what a flood is not to fill the disk with."""

import asyncio
import socket
from collections.abc import Callable
from socket import SocketType
from typing import Any

from nullsmtpd.responder.counters import Counters
from nullsmtpd.responder.linger import Batch
from nullsmtpd.runtime.log import log_each
from nullsmtpd.runtime.sockets import own_address, shown_address

__all__ = ["BURST_LINES", "LINES_PER_SECOND", "AccessLog"]

#: Lines a second in the long run: 1.7 million a day. At most that is 210 MB of IPv4 clients' lines (120 octets), and
#: 300 MB of IPv6 clients' (172). Enough to see whom a flood comes from, and to ban them.
LINES_PER_SECOND = 20

#: Lines that may come at once, after a quiet time: the crowd of a busy host's every day is logged whole.
BURST_LINES = 1000

#: Seconds between two lines that say how many were left out.
LEFT_OUT_EVERY = 1.0

# accept(2) as the socket module has it: a descriptor and the peer's address.
Accept = Callable[[], tuple[int, Any]]
Answer = Callable[[Batch], None]


class AccessLog:
    """Logs the connections that a responder answers: both addresses, the ``mode``, and whether the client spoke first.

    The responder accepts through `noting` and answers through `around`. Of what a client says nothing is taken or kept.
    Lines beyond `LINES_PER_SECOND` and `BURST_LINES`, and those that stderr does not take, are counted, and how many
    they were is logged now and then.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, counters: Counters, mode: str) -> None:
        """Log nothing yet."""
        self._loop = loop
        self._counters = counters
        self._mode = mode
        self._peers: dict[int, tuple[Any, ...]] = {}  # by descriptor; of the batch that is being accepted
        self._budget = float(BURST_LINES)
        self._budget_at = loop.time()
        self._untold = 0
        self._timer: asyncio.TimerHandle | None = None

    def noting(self, accept: Accept) -> Accept:
        """Return an ``accept`` that notes the peer: getpeername() would not know a client that has reset already."""

        def accept_and_note() -> tuple[int, Any]:
            descriptor, peer = accepted = accept()
            self._peers[descriptor] = peer
            return accepted

        return accept_and_note

    def around(self, answer: Answer) -> Answer:
        """Return an ``answer`` that looks at each connection before, and writes the lines after, so no client waits."""

        def answer_and_log(batch: Batch) -> None:
            count = len(batch)
            entries = [self._entry(connection) for connection in batch[: self._allowed(count)]]
            self._peers.clear()
            answer(batch)
            if left_out := count - log_each("connection", entries):
                self._leave_out(left_out)

        return answer_and_log

    def _allowed(self, wanted: int) -> int:
        """Return for how many of ``wanted`` lines the budget lasts, and take them from it: a token bucket."""
        now = self._loop.time()
        self._budget = min(BURST_LINES, self._budget + (now - self._budget_at) * LINES_PER_SECOND)
        self._budget_at = now
        allowed = min(wanted, int(self._budget))
        self._budget -= allowed
        return allowed

    def _entry(self, connection: SocketType) -> dict[str, str]:
        return {
            "peer": shown_address(self._peers[connection.fileno()]),
            "local": _local(connection),
            "mode": self._mode,
            "spoke_first": "yes" if _has_spoken(connection) else "no",
        }

    def _leave_out(self, count: int) -> None:
        self._counters.access_left_out += count
        self._untold += count
        if self._timer is None:  # one that ends, not a clock: an idle daemon does not wake up
            self._timer = self._loop.call_later(LEFT_OUT_EVERY, self._tell)

    def _tell(self) -> None:
        self._timer = None
        if log_each("access-left-out", [{"count": self._untold}]):
            self._untold = 0


def _has_spoken(connection: SocketType) -> bool:
    """Tell whether octets lie in the receive queue; they stay there."""
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:  # EAGAIN: nothing there; ECONNRESET: gone without a word
        return False


def _local(connection: SocketType) -> str:
    try:
        return own_address(connection)
    except OSError:  # macOS: EINVAL, the client has reset
        return "unknown"
