"""How can another program refuse mail? With a Protocol that sends the line, half-closes, and discards input.

The responder does the same without a Protocol, in `nullsmtpd.responder.linger`; the limits are the same.
"""

import asyncio
import contextlib
from typing import cast

from nullsmtpd.responder.linger import DISCARD_BUFFER, DRAIN_TIMEOUT, MAX_DRAIN_OCTETS, MAX_DRAINS
from nullsmtpd.responder.replies import REPLY

__all__ = ["CLOSE_DELAY", "DrainProtocol"]

#: Seconds for which a client that cannot be told the end by half-closing is drained before the close: what it has sent
#: already must not reset it, and a client that reads to the end should not wait for long.
CLOSE_DELAY = 0.5


class DrainProtocol(asyncio.BufferedProtocol):
    """Send the reply, half-close, then read and discard until the client closes.

    It needs no argument, so it works as a protocol factory::

        server = await loop.create_server(nullsmtpd.DrainProtocol, port=2525)

    ``reply``: the octets to send first; ``b""`` for a connection that was answered and half-closed already.
    ``drains``: the set of Protocols that share one limit; this one may be in it already. ``max_drains``: how many there
    may be; a further client gets the reply and is closed at once. ``timeout`` (seconds) and ``octets``: how long, and
    for how much input, a client is drained before it is aborted. A transport without half-close (TLS) is closed after
    half a second.

    No method raises, whatever the client does. RFC 7504 §3: the connection may be closed after the 521 reply.
    """

    __slots__ = ("_drains", "_max_drains", "_octets_left", "_reply", "_timeout", "_timers", "_transport")

    _all_drains: set["DrainProtocol"] = set()  # noqa: RUF012 - shared on purpose: the limit holds for the process

    def __init__(
        self,
        reply: bytes = REPLY,
        *,
        drains: set["DrainProtocol"] | None = None,
        max_drains: int = MAX_DRAINS,
        timeout: float = DRAIN_TIMEOUT,
        octets: int = MAX_DRAIN_OCTETS,
    ) -> None:
        self._reply = reply
        self._drains = self._all_drains if drains is None else drains
        self._max_drains = max_drains
        self._timeout = timeout
        self._octets_left = octets
        self._transport: asyncio.Transport | None = None
        self._timers: list[asyncio.TimerHandle] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the reply and the FIN; drain if there is room."""
        stream = self._transport = cast("asyncio.Transport", transport)  # uvloop's own are no subclass of it
        loop = asyncio.get_running_loop()
        # Also without room to drain: close() waits for as long as a client does not read.
        self._timers.append(loop.call_later(self._timeout, self._abort))
        with contextlib.suppress(OSError, RuntimeError):  # the client has gone already
            if self._reply:
                stream.write(self._reply)
                if stream.can_write_eof():
                    stream.write_eof()
                else:  # TLS
                    self._timers.append(loop.call_later(CLOSE_DELAY, stream.close))
        if self not in self._drains:
            if len(self._drains) >= self._max_drains:
                stream.close()
                return
            self._drains.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer that all input is read into."""
        return DISCARD_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """Count the input, and abort a client that exceeds its limit."""
        self._octets_left -= nbytes
        if self._octets_left < 0:
            self._abort()

    def eof_received(self) -> bool:
        """Let the transport close: the client has finished, so it gets a FIN and no RST."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room for the next client."""
        self._drains.discard(self)
        for timer in self._timers:
            timer.cancel()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
