"""How does a mail server ask? By socketmap, socketmap_table(5): netstrings ``MAP KEY``, and netstrings in return."""

import asyncio
import contextlib
import math
import re
import socket
from collections import OrderedDict

from nullsmtpd.relay.answers import Answers
from nullsmtpd.relay.counters import Counters
from nullsmtpd.runtime.log import log

__all__ = ["MAX_REQUEST_OCTETS", "Client", "Clients", "NetstringError", "netstring", "take_netstring"]

#: Longer than any request: the longest line that Postfix takes from a client has 2048 octets (line_length_limit), and
#: Sendmail's addresses are shorter.
MAX_REQUEST_OCTETS = 4096

#: Seconds for a client to complete a request, and to read a reply. Mail servers write a request at once, and have room
#: for replies of 50 octets.
REQUEST_TIMEOUT = 10.0

#: Seconds without a request. Postfix closes a connection after 10 seconds. Sendmail keeps it as long as its own client
#: stays, which may be silent for an hour (Timeout.command), and defers the next recipient if it is closed.
IDLE_TIMEOUT = 3600.0

#: Seconds between two searches for clients past their deadlines. Timers for each request would take a third of its CPU
#: time.
CHECK_INTERVAL = 5.0

#: The last reply to a client that sent no netstring, and the seconds for which its input is discarded after that. With
#: unread input a close would reset the connection, and the client would lose the message.
MALFORMED = b"PERM malformed netstring"
DRAIN_TIMEOUT = 5.0

#: Seconds at shutdown in which requests that were sent before are still read, and seconds for clients that wait for
#: DNS, or do not read. Container engines kill a process after 10 seconds.
SHUTDOWN_GRACE = 0.1
SHUTDOWN_TIMEOUT = 5.0

_READ_OCTETS = 4096
_DISCARD_OCTETS = 1 << 20

# https://cr.yp.to/proto/netstrings.txt: no leading zeros. It may be incomplete.
_LENGTH = re.compile(rb"(0|[1-9][0-9]{0,3})(:|\Z)|\Z")


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


class Client:
    """One client: its requests are answered one after the other, and input beyond them waits in the kernel.

    So a client has one DNS query under way and some kilobytes of memory, however much it sends or leaves unread. To
    cancel its ``task`` is to disconnect it. ``members``: the clients, to whose end each request moves it.
    """

    def __init__(
        self, connection: socket.socket, answers: Answers, counters: Counters, members: OrderedDict["Client", None]
    ) -> None:
        self.has_asked = False  # it has sent a complete request
        self.is_busy = False  # a reply is being made, or waits for the client to read
        self.is_finishing = False  # no further request is answered
        self.deadline = math.inf  # on the event loop's clock
        self._connection = connection
        self._answers = answers
        self._counters = counters
        self._members = members
        self._received = bytearray()
        self._has_ended = False  # there will be no more input
        self._input = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.task = self._loop.create_task(self._serve())
        self.task.add_done_callback(self._close)  # not in the task, which may be cancelled before it begins

    async def _serve(self) -> None:
        try:
            while not self.is_finishing and (request := await self._next_request()) is not None:
                self.is_busy = self.has_asked = True
                self._members.move_to_end(self)
                self._set_deadline(math.inf)  # DNS queries have their own timeout
                await self._send(await self._answers.reply(request))
                self.is_busy = False
        except NetstringError:
            self._counters.malformed += 1
            await self._reject()
        except OSError:  # the client has gone
            pass
        except Exception as error:  # noqa: BLE001 - a client must not stay without a reply
            log("internal-error", exception=repr(error))

    async def _next_request(self) -> bytes | None:
        """Return the next request; None when there will be no more. Raises `NetstringError` and `OSError`."""
        self._set_deadline(REQUEST_TIMEOUT if self._received else IDLE_TIMEOUT)
        while (request := take_netstring(self._received)) is None and not self._has_ended:
            is_first = not self._received
            await self._read()
            if is_first:
                self._set_deadline(REQUEST_TIMEOUT)
        return request

    async def _read(self) -> None:
        """Wait for input, and read while there is not enough of it. Raises `OSError`."""
        self._input.clear()
        try:
            self._loop.add_reader(self._connection, self._on_readable)
        except RuntimeError:  # uvloop, after an event that was an error beside input
            raise ConnectionResetError from None
        await self._input.wait()

    def _on_readable(self) -> None:
        try:
            octets = self._connection.recv(_READ_OCTETS)
        except BlockingIOError:
            return
        except OSError:  # the client has gone; the DNS query that it waits for may take much longer
            octets = b""
            self.task.cancel()
        self._received += octets
        self._has_ended = not octets
        if self._has_ended or len(self._received) > MAX_REQUEST_OCTETS:
            self._loop.remove_reader(self._connection)
        self._input.set()

    async def _send(self, reply: bytes) -> None:
        self._set_deadline(REQUEST_TIMEOUT)
        await self._loop.sock_sendall(self._connection, netstring(reply))

    async def _reject(self) -> None:
        """Reply to malformed input, half-close, and discard what the client sends until it has read that."""
        with contextlib.suppress(OSError):
            await self._send(MALFORMED)
            self._connection.shutdown(socket.SHUT_WR)
            self._set_deadline(DRAIN_TIMEOUT)
            while not self._has_ended:
                self._received.clear()
                await self._read()

    def _set_deadline(self, seconds: float) -> None:
        self.deadline = self._loop.time() + seconds

    def _close(self, _: asyncio.Task[None]) -> None:
        self._loop.remove_reader(self._connection)
        if self.is_finishing:  # input that was not read must not make this a reset
            with contextlib.suppress(OSError):
                self._connection.recv(_DISCARD_OCTETS)
        self._connection.close()
        self._members.pop(self, None)


class Clients:
    """The clients that are connected now, at most ``limit`` of them.

    When one more connects, another that waits for no reply is evicted: first the oldest of those that have not sent a
    complete request yet, as strangers may, then the one whose last request is longest ago. A mail server then
    connects again for its next request.
    """

    def __init__(self, answers: Answers, counters: Counters, limit: int) -> None:
        self._answers = answers
        self._counters = counters
        self._limit = limit
        self._members: OrderedDict[Client, None] = OrderedDict()  # by their last request, or when they connected
        self._evict_overdue()

    def __len__(self) -> int:
        """Return how many clients are connected."""
        return len(self._members)

    def admit(self, connection: socket.socket) -> None:
        """Serve a client on a non-blocking socket; close it if there is no room because all others are busy."""
        if len(self) >= self._limit:
            idle = (client for client in self._members if not client.is_busy)
            evicted = min(idle, key=lambda client: client.has_asked, default=None)
            if evicted is None:
                self._counters.refused += 1
                connection.close()
                return
            self._evict(evicted)
        self._counters.sessions += 1
        self._members[Client(connection, self._answers, self._counters, self._members)] = None

    def _evict_overdue(self) -> None:
        """Evict clients past their deadlines, now and from now on."""
        loop = asyncio.get_running_loop()
        for client in tuple(self._members):
            if client.deadline <= loop.time():
                self._evict(client)
        loop.call_later(CHECK_INTERVAL, self._evict_overdue)

    def _evict(self, client: Client) -> None:
        self._counters.evicted += 1
        client.task.cancel()
        del self._members[client]

    async def shut_down(self) -> None:
        """Close all connections after the reply to the request under way; those after it are not answered."""
        if not self._members:
            return
        await asyncio.sleep(SHUTDOWN_GRACE)
        for client in self._members:
            client.is_finishing = True
            if not client.is_busy:
                client.task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_TIMEOUT):
                await asyncio.gather(*(client.task for client in self._members), return_exceptions=True)
