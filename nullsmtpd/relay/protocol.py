"""How does a mail server ask? By socketmap, socketmap_table(5): netstrings ``MAP KEY``, and netstrings in return."""

import asyncio
import contextlib
import itertools
import re
from collections.abc import Collection
from typing import cast

from nullsmtpd.nullmx import DomainError, domain_of
from nullsmtpd.relay.answers import Answers, Finding
from nullsmtpd.relay.counters import Counters
from nullsmtpd.runtime.log import log

__all__ = [
    "MAPS",
    "MAX_REQUEST_OCTETS",
    "Clients",
    "NetstringError",
    "RelayProtocol",
    "is_excepted",
    "key_domain",
    "netstring",
    "take_netstring",
]

#: Longer than any request: the longest line that Postfix takes from a client has 2048 octets (line_length_limit), and
#: Sendmail's addresses are shorter.
MAX_REQUEST_OCTETS = 4096

#: Seconds for a client to complete a request, and to read a reply. Mail servers write a request at once, and have room
#: for replies of 50 octets.
REQUEST_TIMEOUT = 10.0

#: Seconds without a request. Postfix closes a connection after 10 seconds. Sendmail keeps it as long as its own client
#: stays, which may be silent for an hour (Timeout.command), and defers the next recipient if it is closed.
IDLE_TIMEOUT = 3600.0

#: Seconds between two searches for idle clients.
IDLE_CHECK_INTERVAL = 60.0

#: Seconds and octets of input from a client that has been told that it sent no netstring. Closing the connection
#: earlier, with unread input, would reset it, and the client would lose the message.
DRAIN_TIMEOUT = 5.0
MAX_DRAIN_OCTETS = 1 << 20

#: Seconds at shutdown in which requests that were sent before are still read.
SHUTDOWN_GRACE = 0.1

# Replies to a client that does not read: beyond this none is made.
_WRITE_OCTETS = 4096

# All input is read into this buffer and copied from there. One per process: reads never overlap.
_READ_BUFFER = memoryview(bytearray(4096))

# https://cr.yp.to/proto/netstrings.txt: no leading zeros. It may be incomplete.
_LENGTH = re.compile(rb"(0|[1-9][0-9]{0,3})(:|\Z)|\Z")
_MAX_NETSTRING = len(f"{MAX_REQUEST_OCTETS}:,") + MAX_REQUEST_OCTETS


class NetstringError(Exception):
    """The input is not a netstring, or a longer one than is accepted; where the next would begin is unknown."""


def netstring(octets: bytes) -> bytes:
    """Return ``octets`` as a netstring."""
    return b"%d:%b," % (len(octets), octets)


def take_netstring(received: bytearray) -> bytes | None:
    """Remove the netstring at the beginning and return its octets; None while it is incomplete.

    Raises `NetstringError`.
    """
    length = _LENGTH.match(received)
    if length is None:
        raise NetstringError
    if length[2] != b":":
        return None
    begin, end = length.end(), length.end() + int(length[1])
    if end - begin > MAX_REQUEST_OCTETS or received[end : end + 1] not in b",":
        raise NetstringError
    if len(received) <= end:
        return None
    octets = bytes(received[begin:end])
    del received[: end + 1]
    return octets


#: The reply for a domain with a null MX, by map.
MAPS = {
    # RFC 7504 §4 has the code and the text, RFC 7505 §6 the enhanced code.
    b"nullmx": netstring(b"OK 556 5.1.10 Domain does not accept mail"),
    # RFC 7505 §4.2 and §6.
    b"nullmxsender": netstring(b"OK 550 5.7.27 Sender address has null MX"),
}

#: The mail server goes on as if it had not asked.
NOT_FOUND = netstring(b"NOTFOUND ")

#: The operator's mistake. NOTFOUND would hide a wrong name in the mail server's configuration; on PERM Postfix logs an
#: error and defers the mail (451), so that the first test shows it and no mail is lost.
UNKNOWN_MAP = netstring(b"PERM unknown map; the maps are nullmx and nullmxsender")

#: The last reply of a connection.
MALFORMED = netstring(b"PERM malformed netstring")


def key_domain(key: bytes) -> str | None:
    """Return the domain that a key is about, in A-labels and lower case; None if there is none.

    A key is an address or a domain. Without an ``@`` a single label is the local part of an address without a domain,
    such as ``postmaster``, which mail servers look up, too; with an ``@`` it may be a top-level domain.
    """
    try:
        domain = domain_of(key.decode())  # SMTPUTF8 (RFC 6531) addresses are UTF-8
    except (UnicodeDecodeError, DomainError):
        return None
    return domain if "." in domain or b"@" in key else None


def is_excepted(domain: str, exceptions: Collection[str]) -> bool:
    """Return whether ``exceptions`` has the domain, or one above it with a dot in front."""
    parents = (domain[index:] for index, character in enumerate(domain) if character == ".")
    return domain in exceptions or any(parent in exceptions for parent in parents)


class RelayProtocol(asyncio.BufferedProtocol):
    """One client: its requests are answered one after the other, and input beyond them waits in the kernel.

    So a client has one DNS query under way and some kilobytes of memory, however much it sends or leaves unread. No
    method raises. ``exceptions``: see `is_excepted`.
    """

    def __init__(
        self, answers: Answers, counters: Counters, clients: "Clients", exceptions: Collection[str] = ()
    ) -> None:
        self.is_busy = False  # a reply is being made, or waits for the client to read
        self._answers = answers
        self._counters = counters
        self._clients = clients
        self._exceptions = exceptions
        self._received = bytearray()
        self._changed = asyncio.Event()  # what `_serve` waits for
        self._is_reading_paused = False
        self._is_writing_paused = False
        self._is_finished = False  # there will be no more input
        self._discarded: int | None = None  # octets; None while input is of use

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve the client if there is room for it."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own are no subclass of it
        self._transport.set_write_buffer_limits(high=_WRITE_OCTETS)
        #: Ends with the connection.
        self.task = asyncio.get_running_loop().create_task(self._serve())
        if not self._clients.admit(self):
            self._transport.close()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer that all input is read into."""
        return _READ_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """Keep the input for `_serve`, and leave the rest in the kernel when that is enough."""
        if self._discarded is not None:
            self._discarded += nbytes
            if self._discarded > MAX_DRAIN_OCTETS:
                self.evict()
            return
        self._received += _READ_BUFFER[:nbytes]
        if len(self._received) > _MAX_NETSTRING:
            self._is_reading_paused = True
            self._transport.pause_reading()
        self._changed.set()

    def eof_received(self) -> bool:
        """Leave it to `_serve` to close the connection, after the replies to the requests that came before."""
        self._is_finished = True
        self._changed.set()
        return True

    def pause_writing(self) -> None:
        """Make no further reply until the client reads."""
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        """Continue."""
        self._is_writing_paused = False
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop serving the client; a DNS query that it waits for may take much longer."""
        self._clients.remove(self)
        self.task.cancel()

    def finish(self) -> None:
        """Close the connection after the reply to the request under way; those after it are not answered."""
        self._discard_input()
        self.eof_received()

    def evict(self) -> None:
        """Close the connection now; replies that the client has not read are lost."""
        self._counters.evicted += 1
        self.connection_lost(None)
        self._transport.abort()

    async def _serve(self) -> None:
        try:
            while (request := await self._next_request()) is not None:
                self._clients.touch(self)
                self.is_busy = True
                self._write(await self._reply(request))
                if self._is_writing_paused:
                    async with asyncio.timeout(REQUEST_TIMEOUT):
                        while self._is_writing_paused:
                            await self._change()
                self.is_busy = False
        except NetstringError:
            await self._reject()
        except TimeoutError:
            self.evict()
            return
        except Exception as error:  # noqa: BLE001 - a client must not stay without a reply
            log("internal-error", exception=repr(error))
        self._transport.close()
        await asyncio.sleep(REQUEST_TIMEOUT)  # until the last reply is sent: `connection_lost` cancels this
        self.evict()

    async def _next_request(self) -> bytes | None:
        """Return the next request; None when there will be no more. Raises `NetstringError` and `TimeoutError`."""
        deadline = None  # from its first octet on
        while (request := take_netstring(self._received)) is None and not self._is_finished:
            self._resume_reading()
            if not self._received:
                await self._change()
                continue
            deadline = deadline or asyncio.get_running_loop().time() + REQUEST_TIMEOUT
            async with asyncio.timeout_at(deadline):
                await self._change()
        return request

    async def _reply(self, request: bytes) -> bytes:
        self._counters.requests += 1
        name, space, key = request.partition(b" ")
        reply = MAPS.get(name) if space else None
        if reply is None:
            self._counters.unknown_maps += 1
            return UNKNOWN_MAP
        domain = key_domain(key)
        if domain is None:
            self._counters.not_domains += 1
        elif is_excepted(domain, self._exceptions):
            self._counters.excepted += 1
        elif (finding := await self._find(domain)) is Finding.NULL_MX:
            self._counters.null_mx += 1
            return reply
        elif finding is Finding.NOT_NULL_MX:
            self._counters.not_null_mx += 1
        else:
            self._counters.dns_failures += 1
        return NOT_FOUND

    async def _find(self, domain: str) -> Finding:
        try:
            return await self._answers.find(domain)
        except asyncio.CancelledError:  # the client has gone
            self._counters.dns_failures += 1
            raise

    async def _reject(self) -> None:
        """Reply to malformed input, half-close, and discard what the client sends until it has read that."""
        self._counters.malformed += 1
        self._write(MALFORMED)
        self._discard_input()
        with contextlib.suppress(OSError, RuntimeError):  # the client has gone
            self._transport.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT):
                while not self._is_finished:
                    await self._change()

    def _write(self, reply: bytes) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # the client has gone
            self._transport.write(reply)

    def _discard_input(self) -> None:
        self._received.clear()
        self._discarded = 0
        self._resume_reading()

    def _resume_reading(self) -> None:
        if self._is_reading_paused:
            self._is_reading_paused = False
            self._transport.resume_reading()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


class Clients:
    """The clients that are connected now, at most ``limit`` of them.

    When one more connects, another that waits for no reply is evicted: first the oldest of those that have not sent a
    complete request yet, as strangers may, then the one whose last request is longest ago. A mail server then
    connects again for its next request.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, counters: Counters, limit: int) -> None:
        self._loop = loop
        self._counters = counters
        self._limit = limit
        self._new: dict[RelayProtocol, float] = {}  # by the time of the connection
        self._known: dict[RelayProtocol, float] = {}  # by the time of the last request

    def __len__(self) -> int:
        """Return how many clients are connected."""
        return len(self._new) + len(self._known)

    def admit(self, client: RelayProtocol) -> bool:
        """Add a client; return False if there is no room because all others are busy."""
        if len(self) >= self._limit:
            idle = next((other for other in itertools.chain(self._new, self._known) if not other.is_busy), None)
            if idle is None:
                self._counters.refused += 1
                return False
            idle.evict()
        self._counters.sessions += 1
        self._new[client] = self._loop.time()
        return True

    def touch(self, client: RelayProtocol) -> None:
        """Note that a client has sent a complete request."""
        self.remove(client)
        self._known[client] = self._loop.time()

    def remove(self, client: RelayProtocol) -> None:
        """Remove a client that is in it or not."""
        self._new.pop(client, None)
        self._known.pop(client, None)

    def evict_idle(self) -> None:
        """Evict clients without a request for `IDLE_TIMEOUT`, now and from now on."""
        expired = self._loop.time() - IDLE_TIMEOUT
        for client, active in (*self._new.items(), *self._known.items()):
            if active <= expired:
                client.evict()
        self._loop.call_later(IDLE_CHECK_INTERVAL, self.evict_idle)

    async def shut_down(self) -> None:
        """Answer the requests that were sent before, and close all connections."""
        if not len(self):
            return
        await asyncio.sleep(SHUTDOWN_GRACE)
        clients = (*self._new, *self._known)
        for client in clients:
            client.finish()
        await asyncio.gather(*(client.task for client in clients), return_exceptions=True)
