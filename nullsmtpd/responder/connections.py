"""Accepted connections that are served by asyncio Protocols: a bounded number of them."""

import asyncio
import socket
from collections.abc import Iterator
from socket import SocketType
from typing import Generic, TypeVar

__all__ = ["ConnectionSet"]

_P = TypeVar("_P", bound=asyncio.BaseProtocol)


class ConnectionSet(Generic[_P]):
    """The Protocols of one kind, at most ``limit`` of them.

    A Protocol is in ``members`` from `attach` on, and removes itself when its connection is lost. ``total`` counts all
    that were ever attached.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self.members: set[_P] = set()
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Return how many connections are served now."""
        return len(self.members)

    def __iter__(self) -> Iterator[_P]:
        """Iterate over a copy: Protocols may remove themselves meanwhile."""
        return iter(self.members.copy())

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another."""
        return len(self.members) >= self.limit

    def attach(self, connection: SocketType, protocol: _P) -> None:
        """Give the connection to the Protocol; where the event loop cannot take it, it is closed."""
        self.total += 1
        self.members.add(protocol)
        kind = (connection.family, connection.type, connection.proto)  # or each would be asked of the kernel
        task = self._loop.create_task(self._attach(socket.socket(*kind, fileno=connection.detach()), protocol))
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)

    async def wait_attached(self) -> None:
        """Wait until each connection has reached its Protocol."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _attach(self, connection: socket.socket, protocol: _P) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError:  # no memory for a transport, or the client has gone
            self.members.discard(protocol)
            connection.close()
