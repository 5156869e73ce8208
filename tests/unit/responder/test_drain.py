import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from support import LINE, connect, read_all

from nullsmtpd import DrainProtocol
from nullsmtpd.responder.counters import Counters
from nullsmtpd.responder.drain import Drains

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


def in_loop(test: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine function in a fresh event loop."""

    async def run() -> None:
        await test()

    asyncio.run(run())


STEPS = st.lists(st.one_of(st.integers(0, 1 << 17), st.sampled_from(["eof", "lost"])), max_size=20)


@given(steps=STEPS, error=st.sampled_from([None, OSError(32, "EPIPE"), RuntimeError("closing")]), can_eof=st.booleans())
def test_no_order_of_events_makes_the_protocol_raise(
    steps: list[int | str], error: Exception | None, *, can_eof: bool
) -> None:
    """Invariant: nothing raises, the input kept is none, and the client is cut off once it exceeds its octets."""

    async def scenario() -> None:
        drains: set[DrainProtocol] = set()
        protocol = DrainProtocol(drains=drains, octets=1 << 18)
        transport = FakeTransport(error, can_eof=can_eof)
        protocol.connection_made(transport)
        sent = 0
        for step in steps:
            if isinstance(step, int):
                room = len(protocol.get_buffer(step))
                sent += min(step, room)
                protocol.buffer_updated(min(step, room))
            elif step == "eof":
                assert protocol.eof_received() is False
            else:
                protocol.connection_lost(error)
                protocol.connection_lost(None)
        assert ("abort" in transport.calls) == (sent > 1 << 18)
        assert len(drains) <= 1
        protocol.connection_lost(None)
        assert not drains

    in_loop(scenario)


def test_reply_and_fin_come_first() -> None:
    """The reply is written and the connection half-closed before anything is read."""

    async def scenario() -> None:
        transport = FakeTransport()
        DrainProtocol(b"521 No\r\n", drains=set()).connection_made(transport)
        assert transport.written == b"521 No\r\n"
        assert transport.calls == ["write", "write_eof"]

    in_loop(scenario)


def test_a_connection_that_was_answered_hears_nothing_more() -> None:
    """An empty reply means that the line and the FIN have been sent by someone else."""

    async def scenario() -> None:
        transport = FakeTransport()
        DrainProtocol(b"", drains=set()).connection_made(transport)
        assert transport.calls == []

    in_loop(scenario)


def test_past_the_bound_a_client_gets_the_reply_and_is_closed() -> None:
    """The number of draining clients is bounded; one more still gets its line."""

    async def scenario() -> None:
        drains: set[DrainProtocol] = set()
        for _ in range(2):
            DrainProtocol(drains=drains, max_drains=2).connection_made(FakeTransport())
        transport = FakeTransport()
        late = DrainProtocol(drains=drains, max_drains=2)
        late.connection_made(transport)
        assert transport.calls == ["write", "write_eof", "close"]
        assert late not in drains
        assert len(drains) == 2

    in_loop(scenario)


def test_past_the_bound_who_does_not_read_has_no_more_time_than_the_others() -> None:
    """The close of a transport waits for what was written, and has no clock."""

    async def scenario() -> None:
        transport = FakeTransport()
        DrainProtocol(drains=set(), max_drains=0, seconds=0.01).connection_made(transport)
        async with asyncio.timeout(10):
            while "abort" not in transport.calls:
                await asyncio.sleep(0.001)

    in_loop(scenario)


def test_time_is_bounded() -> None:
    """A client that never stops is cut off when its seconds are up."""

    async def scenario() -> None:
        transport = FakeTransport()
        DrainProtocol(drains=set(), seconds=0.01).connection_made(transport)
        async with asyncio.timeout(10):
            while "abort" not in transport.calls:
                await asyncio.sleep(0.001)

    in_loop(scenario)


@pytest.mark.parametrize("new_loop", LOOPS)
def test_it_serves_with_a_plain_create_server(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """The class itself is a protocol factory, in asyncio's loop and in uvloop's, for a client that blasts first."""

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


@pytest.mark.parametrize("new_loop", LOOPS)
def test_drains_take_as_many_as_their_limit(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Connections are taken over up to the limit; places come free when clients close."""

    async def scenario() -> None:
        counters = Counters()
        drains = Drains(asyncio.get_running_loop(), counters, limit=2)
        pairs = [socket.socketpair() for _ in range(3)]
        try:
            taken = [drains.take(server) for _, server in pairs]
            assert taken == [True, True, False]
            assert (len(drains), counters.drained) == (2, 2)
            for client, _ in pairs:
                client.close()
            async with asyncio.timeout(10):
                while len(drains):
                    await asyncio.sleep(0.001)
            assert pairs[0][1].fileno() == -1
            assert pairs[2][1].fileno() != -1
        finally:
            for pair in pairs:
                for one in pair:
                    one.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario())


def test_a_transport_that_cannot_be_had_costs_one_client_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the loop fails to take a connection over, its place is free again and its descriptor closed."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()

        async def fail(*_: object) -> None:
            raise OSError(12, "Cannot allocate memory")

        monkeypatch.setattr(loop, "connect_accepted_socket", fail)
        drains = Drains(loop, Counters(), limit=2)
        client, server = socket.socketpair()
        with client:
            assert drains.take(server)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(drains) == 0
            assert client.recv(1) == b""

    in_loop(scenario)
