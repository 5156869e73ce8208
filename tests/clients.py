"""Clients of every kind, many at a time: ``python clients.py HOST PORT BEHAVIOUR COUNT CONCURRENCY [PATIENCE]``.

A process of its own, so that it can run inside a network namespace. It prints one JSON object: how many clients read
the whole line and then the FIN, and what became of the others.
"""

import asyncio
import collections
import json
import resource
import socket
import sys
from collections.abc import Awaitable, Callable

LINE = b"521 Host does not accept mail\r\n"

Behaviour = Callable[[asyncio.AbstractEventLoop, socket.socket], Awaitable[object]]


async def waits_its_turn(_loop: asyncio.AbstractEventLoop, _connection: socket.socket) -> None:
    """Say nothing, as RFC 5321 §3.1 has it."""


async def says_quit_first(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    """Speak before the greeting."""
    await loop.sock_sendall(connection, b"QUIT\r\n")


async def says_ehlo_first(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    """Speak before the greeting and take a while to read."""
    await loop.sock_sendall(connection, b"EHLO client.example\r\n")
    await asyncio.sleep(0.05)


async def writes_twice(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    """Write, pause, write again, and only then read: where a reset would be noticed first."""
    await loop.sock_sendall(connection, b"EHLO client.example\r\n")
    await asyncio.sleep(0.05)
    await loop.sock_sendall(connection, b"MAIL FROM:<a@client.example>\r\n")
    await asyncio.sleep(0.05)


async def blasts_64_kib(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    """Send 64 KiB, then read."""
    await loop.sock_sendall(connection, b"x" * (1 << 16))


async def blasts_1_mib(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    """Send 1 MiB with a small buffer of its own, so that it cannot read before the server has; then read."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 15)
    await loop.sock_sendall(connection, b"x" * (1 << 20))


async def half_closes(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    """Speak, half-close, then read, as ``nc -N`` does."""
    await loop.sock_sendall(connection, b"QUIT\r\n")
    connection.shutdown(socket.SHUT_WR)


async def reads_late(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    """Speak, then read a second later."""
    await loop.sock_sendall(connection, b"EHLO client.example\r\n")
    await asyncio.sleep(1)


async def looks_at_so_error(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    """Behave as event-loop clients do, which look at SO_ERROR first and do not read when there is one."""
    await loop.sock_sendall(connection, b"EHLO client.example\r\n")
    for _ in range(5):
        await asyncio.sleep(0.02)
        if error := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, "SO_ERROR before the line was read")


BEHAVIOURS: dict[str, Behaviour] = {
    behaviour.__name__: behaviour
    for behaviour in (
        waits_its_turn,
        says_quit_first,
        says_ehlo_first,
        writes_twice,
        blasts_64_kib,
        blasts_1_mib,
        half_closes,
        reads_late,
        looks_at_so_error,
    )
}


async def one_client(
    loop: asyncio.AbstractEventLoop, address: tuple[str, int], behaviour: Behaviour, patience: float
) -> str:
    """Return what became of one client: ``whole line`` or what it saw instead."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as connection:
        connection.setblocking(False)
        received = b""
        try:
            async with asyncio.timeout(patience):
                await loop.sock_connect(connection, address)
                await behaviour(loop, connection)
                while octets := await loop.sock_recv(connection, 4096):
                    received += octets
        except TimeoutError:
            return f"silence after {received!r}"
        except ConnectionRefusedError:
            return "refused"
        except OSError as error:
            return f"{type(error).__name__} after {received!r}"
        return "whole line" if received == LINE else f"FIN after {received!r}"


async def run(address: tuple[str, int], behaviour: Behaviour, count: int, concurrency: int, patience: float) -> None:
    """Run ``count`` clients, ``concurrency`` of them at a time, and print what became of them."""
    loop = asyncio.get_running_loop()
    outcomes: collections.Counter[str] = collections.Counter()
    left = iter(range(count))

    async def one_after_another() -> None:
        for _ in left:
            outcomes[await one_client(loop, address, behaviour, patience)] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(one_after_another())
    print(json.dumps(outcomes))  # noqa: T201 - the result


if __name__ == "__main__":
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    host, port, name, how_many, at_once, *rest = sys.argv[1:]
    asyncio.run(run((host, int(port)), BEHAVIOURS[name], int(how_many), int(at_once), float(rest[0]) if rest else 30.0))
