"""The draining Protocol on real event loops and sockets."""

import asyncio
from collections.abc import Callable

import pytest
import uvloop
from support import LINE, connect, read_all

from nullsmtpd import DrainProtocol

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
each_loop = pytest.mark.parametrize("new_loop", LOOPS, ids=["asyncio", "uvloop"])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


@each_loop
def test_it_serves_with_a_plain_create_server(new_loop: NewLoop) -> None:
    """The class itself is a protocol factory, for clients that send before they read."""

    def client(address: tuple[str, int]) -> bytes:
        with connect(address) as connection:
            connection.sendall(b"x" * 1_000_000)
            return read_all(connection)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(DrainProtocol, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        answers = await asyncio.gather(*(asyncio.to_thread(client, address) for _ in range(20)))
        assert answers == [LINE] * 20
        server.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario())
