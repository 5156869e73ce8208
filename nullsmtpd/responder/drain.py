"""The asyncio Protocol for clients that go on sending: their input is read and forgotten, within bounds.

A close() with unread input makes the kernel send RST, and a client that is still busy writing then loses the line that
it has not read yet. Reading what it sends, for a while, lets it get there.
"""

import asyncio
import contextlib
from socket import SocketType
from typing import cast

from nullsmtpd.responder.connections import Attached
from nullsmtpd.responder.counters import Counters
from nullsmtpd.responder.replies import REPLY

__all__ = ["MAX_DRAINS", "MAX_DRAIN_OCTETS", "MAX_DRAIN_SECONDS", "DrainProtocol", "Drains"]

#: A client that needs longer than this to stop talking is not going to read (RFC 5321 §4.5.3.2 clients read at once).
MAX_DRAIN_SECONDS = 5.0

#: More than any mail system sends ahead of the greeting; a 1 MiB blast still reads its line afterwards.
MAX_DRAIN_OCTETS = 1 << 20

#: A draining client costs a transport (a few KiB), not just a descriptor: 1024 of them stay within some megabytes.
MAX_DRAINS = 1024

# Where all input goes, over and over, unseen. One per process: reads never overlap.
_BIN = memoryview(bytearray(1 << 16))


class DrainProtocol(asyncio.BufferedProtocol):
    """Say the reply, half-close, then read and discard until the client is done.

    It needs no argument, so it works as a protocol factory as it is::

        server = await loop.create_server(nullsmtpd.DrainProtocol, port=2525)

    ``reply``: the octets to say first; ``b""`` for a connection that was answered and half-closed already.
    ``drains``: the Protocols draining now, shared by those that have one bound in common; one that is in it already has
    its place. ``max_drains``: how many there may be; a further client gets the reply and is closed at once.
    ``seconds``, ``octets``: how long, and for how much input, one client is drained before it is cut off.

    No method raises, whatever the client does. After RFC 7504 §3: the connection may be closed once 521 was said.
    """

    __slots__ = ("_drains", "_max_drains", "_octets_left", "_reply", "_seconds", "_timer", "_transport")

    _all_drains: set["DrainProtocol"] = set()  # noqa: RUF012 - shared on purpose: the bound holds for the process

    def __init__(
        self,
        reply: bytes = REPLY,
        *,
        drains: set["DrainProtocol"] | None = None,
        max_drains: int = MAX_DRAINS,
        seconds: float = MAX_DRAIN_SECONDS,
        octets: int = MAX_DRAIN_OCTETS,
    ) -> None:
        """Note the bounds; nothing happens before the connection is made."""
        self._reply = reply
        self._drains = self._all_drains if drains is None else drains
        self._max_drains = max_drains
        self._seconds = seconds
        self._octets_left = octets
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say the reply and its FIN; begin to drain if there is room."""
        stream = self._transport = cast("asyncio.Transport", transport)  # uvloop's own are no subclass of it
        with contextlib.suppress(OSError, RuntimeError):  # the client has gone already
            if self._reply:
                stream.write(self._reply)
                if stream.can_write_eof():
                    stream.write_eof()
        # For who finds no room too: close() waits for as long as a client does not read.
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._cut_off)
        if self not in self._drains:
            if len(self._drains) >= self._max_drains:
                stream.close()
                return
            self._drains.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the one buffer that all input is read into, and overwritten in."""
        return _BIN

    def buffer_updated(self, nbytes: int) -> None:
        """Count what came, and cut off a client that exceeds its bound."""
        self._octets_left -= nbytes
        if self._octets_left < 0:
            self._cut_off()

    def eof_received(self) -> bool:
        """Let the transport close: the client is done, so it gets a FIN and no RST."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room for the next one."""
        self._drains.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cut_off(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Drains(Attached[DrainProtocol]):
    """The clients of one server that are being drained."""

    def __init__(self, loop: asyncio.AbstractEventLoop, counters: Counters, limit: int) -> None:
        """Drain nobody yet."""
        super().__init__(loop, limit, self._count)
        self._counters = counters

    def take(self, connection: SocketType) -> bool:
        """Take over a connection that was answered and half-closed; False when there are enough of them."""
        if self.is_full:
            return False
        self._counters.drained += 1
        self.attach(connection, DrainProtocol(b"", drains=self.open, max_drains=self.limit))
        return True

    def _count(self, draining: int) -> None:
        self._counters.draining = draining
