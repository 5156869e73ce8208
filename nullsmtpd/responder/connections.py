"""How accepted connections come to asyncio Protocols: a bounded number, each with its place from the start."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from socket import SocketType
from typing import Generic, TypeVar

__all__ = ["Attached"]

_P = TypeVar("_P", bound=asyncio.BaseProtocol)


class _Open(set[_P]):
    """The Protocols with a connection; how many there are is told whenever that changes."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        super().__init__()
        self._tell = tell

    def add(self, protocol: _P) -> None:
        super().add(protocol)
        self._tell(len(self))

    def discard(self, protocol: object) -> None:
        super().discard(protocol)
        self._tell(len(self))


class Attached(Generic[_P]):
    """The Protocols that serve connections of one kind, ``limit`` of them at most.

    ``open`` is the set of them, and ``tell`` hears how many. A Protocol is in it from `attach` on, and takes itself out
    when its connection is lost.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int, tell: Callable[[int], None]) -> None:
        """Serve nobody yet."""
        self.limit = limit
        self.open: set[_P] = _Open(tell)
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Return how many connections are served now."""
        return len(self.open)

    def __iter__(self) -> Iterator[_P]:
        """Go through those served now; they may leave meanwhile."""
        return iter(self.open.copy())

    @property
    def is_full(self) -> bool:
        """Tell whether there is no place left."""
        return len(self.open) >= self.limit

    def attach(self, connection: SocketType, protocol: _P) -> None:
        """Give the connection to the Protocol; where the loop cannot take it, it is closed."""
        self.open.add(protocol)
        kind = (connection.family, connection.type, connection.proto)  # or each would be asked of the kernel
        task = self._loop.create_task(self._attach(socket.socket(*kind, fileno=connection.detach()), protocol))
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Wait until each connection has reached its Protocol, which knows of none before."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _attach(self, connection: socket.socket, protocol: _P) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError:  # no memory for a transport, or the client is gone
            self.open.discard(protocol)
            connection.close()
