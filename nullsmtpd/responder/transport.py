"""How does an accepted socket reach an asyncio Protocol? Through a transport that does only what these Protocols need.

uvloop's own transport costs a task, a dozen objects and several more system calls per connection.
"""

import asyncio
import select
import socket
import sys
from collections.abc import Callable
from socket import SocketType

from nullsmtpd.responder.linger import BUFFER_ERRNOS, SEND_RETRY_DELAY

__all__ = ["Poller", "SocketTransport"]

# Read at a time: more than a client sends before it waits for a reply.
_READ_OCTETS = 1 << 14

#: Sockets served before the event loop gets its turn: each of its iterations also accepts one client per listener.
MAX_EVENTS = 64


class Poller:
    """Calls functions when sockets are readable; the event loop watches one epoll descriptor in place of all of them.

    libuv takes nine system calls to watch a socket that is closed soon. On Linux an epoll instance of its own, which
    itself is watched by the event loop, takes two. Raises `OSError` when there can be none.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._epoll: select.epoll | None = None
        if sys.platform == "linux":
            self._epoll = select.epoll()
            loop.add_reader(self._epoll.fileno(), self._on_readable)

    def add(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever the descriptor is readable. Raises `OSError` when there is no room for it."""
        if self._epoll is None:
            self._loop.add_reader(fd, callback)
        else:
            self._epoll.register(fd, select.EPOLLIN)
            self._callbacks[fd] = callback

    def remove(self, fd: int) -> None:
        """Stop calling; before the descriptor is closed."""
        if self._epoll is None:
            self._loop.remove_reader(fd)
        elif self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _on_readable(self) -> None:
        assert self._epoll is not None
        for fd, _ in self._epoll.poll(0, MAX_EVENTS):
            if callback := self._callbacks.get(fd):  # not removed by one of the others
                callback()


class SocketTransport(asyncio.Transport):
    """Connects ``connection``, a socket that was just accepted, to ``protocol``.

    Data goes to the kernel at once; what it does not take is kept and sent later, and ``pause_writing`` is called
    whenever data is left unsent. Raises `OSError` when epoll has no room for the socket.
    """

    __slots__ = ("_closes_when_sent", "_fd", "_is_closing", "_loop", "_poller", "_protocol", "_socket", "unsent")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        connection: SocketType,
        protocol: asyncio.Protocol,
    ) -> None:
        self._loop = loop
        self._poller = poller
        self._socket = connection
        self._fd = connection.fileno()
        self.unsent = b""
        self._closes_when_sent = False
        self._is_closing = False
        self._protocol = protocol
        poller.add(self._fd, self._on_readable)
        protocol.connection_made(self)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Do nothing: the limit is always 0."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data``."""
        if self._is_closing:
            return
        if self.unsent:
            self.unsent += data
            return
        self._send(bytes(data))
        if self.unsent:
            self._protocol.pause_writing()

    def close(self) -> None:
        """Close, after what is still to be sent."""
        if self.unsent:
            self._closes_when_sent = True
            self._poller.remove(self._fd)  # otherwise epoll would report the end of input again and again
        else:
            self.abort()

    def abort(self) -> None:
        """Close now."""
        if not self._is_closing:
            self.detach().close()
            self._protocol.connection_lost(None)

    def detach(self) -> SocketType:
        """Return the socket; the Protocol gets no further events."""
        self._is_closing = True
        self._poller.remove(self._fd)
        return self._socket

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(_READ_OCTETS, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:  # ECONNRESET
            self.abort()
            return
        if data:
            self._protocol.data_received(data)
        else:
            self.close()  # end of input, and a session has nothing to add

    def _send(self, data: bytes) -> None:
        try:
            sent = self._socket.send(data, socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno not in BUFFER_ERRNOS:  # the client has gone
                self.abort()
                return
            sent = 0
        self.unsent = data[sent:]
        if self.unsent:  # not by epoll, which may report a socket as writable while the kernel lacks memory
            self._loop.call_later(SEND_RETRY_DELAY, self._send_unsent)
        elif self._closes_when_sent:
            self.abort()

    def _send_unsent(self) -> None:
        if not self._is_closing:
            self._send(self.unsent)
