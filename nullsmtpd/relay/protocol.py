"""How does a mail server ask? By socketmap, socketmap_table(5): netstrings ``MAP KEY``, and netstrings in return."""

import asyncio
import contextlib
import itertools
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
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

# https://cr.yp.to/proto/netstrings.txt: no leading zeros.
_LENGTH = re.compile(rb"(0|[1-9][0-9]{0,3}):")
_PARTIAL_LENGTH = re.compile(rb"(0|[1-9][0-9]{0,3})?")
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
        if _PARTIAL_LENGTH.fullmatch(received):
            return None
        raise NetstringError
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
    return bool(exceptions) and (domain in exceptions or any(parent in exceptions for parent in parents))


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
        self._transport: asyncio.Transport | None = None
        self._wakeup: asyncio.Future[None] | None = None
        self._is_reading_paused = False
        self._is_writing_paused = False
        self._is_finished = False  # there will be no more input
        self._discarded: int | None = None  # octets; None while input is of use

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve the client if there is room for it."""
        stream = cast("asyncio.Transport", transport)  # uvloop's own are no subclass of it
        if not self._clients.admit(self):
            stream.close()
            return
        stream.set_write_buffer_limits(high=_WRITE_OCTETS)
        self._transport = stream
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._serve())

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
        if len(self._received) > _MAX_NETSTRING and self._transport is not None:
            self._is_reading_paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """Leave it to `_serve` to close the connection, after the replies to the requests that came before."""
        self._is_finished = True
        self._wake()
        return True

    def pause_writing(self) -> None:
        """Make no further reply until the client reads."""
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        """Continue."""
        self._is_writing_paused = False
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop serving the client; a DNS query that it waits for may take much longer."""
        self._transport = None
        self._received.clear()
        self._clients.remove(self)
        self.eof_received()

    def finish(self) -> None:
        """Close the connection after the reply to the request under way; those after it are not answered."""
        self._discard_input()
        self.eof_received()

    def evict(self) -> None:
        """Close the connection now; replies that the client has not read are lost."""
        transport = self._transport
        if transport is None:
            return
        self._counters.evicted += 1
        self.connection_lost(None)
        if transport.get_write_buffer_size():
            transport.abort()
        else:
            transport.close()

    async def _serve(self) -> None:
        try:
            while (request := await self._next_request()) is not None:
                self._clients.touch(self)
                self.is_busy = True
                self._write(await self._reply(request))
                if self._is_writing_paused:
                    await self._wait_until(lambda: not self._is_writing_paused or self._transport is None)
                self.is_busy = False
        except NetstringError:
            await self._reject()
        except TimeoutError:
            self.evict()
        except Exception as error:  # noqa: BLE001 - a client must not stay without a reply
            log("internal-error", exception=repr(error))
        await self._close()

    async def _next_request(self) -> bytes | None:
        """Return the next request; None when there will be no more. Raises `NetstringError` and `TimeoutError`."""
        deadline = None
        while (request := take_netstring(self._received)) is None:
            if self._is_finished:
                return None
            self._resume_reading()
            if not self._received:
                await self._change()
                continue
            deadline = deadline or self._loop.time() + REQUEST_TIMEOUT
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
        elif (finding := self._answers.known(domain) or await self._find(domain)) is Finding.NULL_MX:
            self._counters.null_mx += 1
            return reply
        elif finding is Finding.NOT_NULL_MX:
            self._counters.not_null_mx += 1
        else:
            self._counters.dns_failures += 1
        return NOT_FOUND

    async def _find(self, domain: str) -> Finding:
        query = self._answers.find(domain)
        query.add_done_callback(self._wake)
        await self._wait_until(lambda: query.done() or self._transport is None, None)
        query.remove_done_callback(self._wake)
        return query.result() if query.done() else Finding.UNKNOWN

    async def _reject(self) -> None:
        """Reply to malformed input, half-close, and discard what the client sends until it has read that."""
        self._counters.malformed += 1
        self._write(MALFORMED)
        self._discard_input()
        if self._transport is not None:
            with contextlib.suppress(OSError, RuntimeError):  # the client has gone
                self._transport.write_eof()
        with contextlib.suppress(TimeoutError):
            await self._wait_until(lambda: self._is_finished, DRAIN_TIMEOUT)

    async def _close(self) -> None:
        """Close the connection when the last reply is sent; evict a client that never reads it."""
        if self._transport is None:
            return
        self._transport.close()
        try:
            await self._wait_until(lambda: self._transport is None)
        except TimeoutError:
            self.evict()

    def _write(self, reply: bytes) -> None:
        if self._transport is not None:
            with contextlib.suppress(OSError, RuntimeError):  # the client has gone
                self._transport.write(reply)

    def _discard_input(self) -> None:
        self._received.clear()
        self._discarded = 0
        self._resume_reading()

    def _resume_reading(self) -> None:
        if self._is_reading_paused and self._transport is not None:
            self._is_reading_paused = False
            self._transport.resume_reading()

    async def _wait_until(self, condition: Callable[[], bool], timeout: float | None = REQUEST_TIMEOUT) -> None:  # noqa: ASYNC109 - one for several waits
        """Wait. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout):
            while not condition():
                await self._change()

    async def _change(self) -> None:
        """Wait until something happens to the connection, or to what `_wake` is called for."""
        self._wakeup = self._loop.create_future()
        await self._wakeup

    def _wake(self, _: object = None) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)


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
        self._new: OrderedDict[RelayProtocol, float] = OrderedDict()  # by the time of the connection
        self._known: OrderedDict[RelayProtocol, float] = OrderedDict()  # by the time of the last request
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def __len__(self) -> int:
        """Return how many clients are connected."""
        return len(self._new) + len(self._known)

    def admit(self, client: RelayProtocol) -> bool:
        """Add a client; return False if there is no room because all others are busy."""
        if len(self) >= self._limit:
            idle = next((other for other in self._in_order() if not other.is_busy), None)
            if idle is None:
                self._counters.refused += 1
                return False
            idle.evict()
        self._counters.sessions += 1
        self._new[client] = self._loop.time()
        self._is_empty.clear()
        return True

    def touch(self, client: RelayProtocol) -> None:
        """Note that a client has sent a complete request."""
        self._new.pop(client, None)
        self._known[client] = self._loop.time()
        self._known.move_to_end(client)

    def remove(self, client: RelayProtocol) -> None:
        """Remove a client that is in it or not."""
        self._new.pop(client, None)
        self._known.pop(client, None)
        if not len(self):
            self._is_empty.set()

    def evict_idle(self) -> None:
        """Evict clients without a request for `IDLE_TIMEOUT`, now and from now on."""
        expired = self._loop.time() - IDLE_TIMEOUT
        for clients in (self._new, self._known):
            while clients and next(iter(clients.values())) <= expired:
                next(iter(clients)).evict()
        self._loop.call_later(IDLE_CHECK_INTERVAL, self.evict_idle)

    async def shut_down(self) -> None:
        """Answer the requests that were sent before, and close all connections."""
        if len(self):
            await asyncio.sleep(SHUTDOWN_GRACE)
        for client in list(self._in_order()):
            client.finish()
        await self._is_empty.wait()

    def _in_order(self) -> Iterator[RelayProtocol]:
        return itertools.chain(self._new, self._known)
