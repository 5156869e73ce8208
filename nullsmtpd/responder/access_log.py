"""One log line per connection, rate-limited so that a flood cannot fill a disk."""

import asyncio
import socket
from socket import SocketType
from typing import Any

from nullsmtpd.runtime.log import log
from nullsmtpd.runtime.sockets import format_sockaddr, local_address

__all__ = ["MAX_LINES", "WINDOW", "AccessLog"]

#: Lines in `WINDOW` seconds: the busy minute of an ordinary host is logged whole, and a flood of a whole day takes at
#: most 1.7 million lines: 210 MB of IPv4 clients' lines (120 octets), 300 MB of IPv6 clients' (172).
MAX_LINES = 1200
WINDOW = 60.0


class AccessLog:
    """Logs connections with both addresses, the ``mode``, and whether the client spoke first.

    Nothing that a client sends is read or kept. ``suppressed`` counts the lines beyond the limit, and those that could
    not be written; it is logged at the end of each window in which it has grown.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, mode: str) -> None:
        self.suppressed = 0
        self._loop = loop
        self._mode = mode
        self._window_end = 0.0
        self._lines = 0
        self._reported = 0

    def record(self, connection: SocketType, peer: tuple[Any, ...]) -> None:
        """Log an accepted connection. ``peer``: as accept(2) gave it; a client that has reset has none any more."""
        now = self._loop.time()
        if now >= self._window_end:
            self._window_end, self._lines = now + WINDOW, 0
        self._lines += 1
        spoke_first = "yes" if _has_spoken(connection) else "no"
        fields = {"peer": format_sockaddr(peer), "local": _local(connection), "mode": self._mode}
        if self._lines > MAX_LINES or not log("connection", **fields, spoke_first=spoke_first):
            if self.suppressed == self._reported:
                self._loop.call_at(self._window_end, self._report)
            self.suppressed += 1

    def _report(self) -> None:
        count = self.suppressed - self._reported
        self._reported = self.suppressed
        log("access-suppressed", count=count)


def _has_spoken(connection: SocketType) -> bool:
    """Return whether there is unread input; it stays there."""
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:  # EAGAIN: nothing there; ECONNRESET
        return False


def _local(connection: SocketType) -> str:
    try:
        return local_address(connection)
    except OSError:  # macOS: EINVAL, the client has reset
        return "unknown"
