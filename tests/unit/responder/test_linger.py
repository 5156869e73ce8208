"""The linger queues against a clock of the test's own and real socket pairs on loopback."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from socket import SocketType
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import read_all

from nullsmtpd.runtime import tcp
from nullsmtpd.responder.counters import Counters
from nullsmtpd.responder.drain import Drains
from nullsmtpd.responder.linger import FIRST_LOOK, KEPT_AT_LEAST, Lingering


class Bench:
    """A `Lingering` with clients: each is the far end of a connection that was answered and half-closed."""

    def __init__(self, seconds: float = 2.0, limit: int = 100, drains: int = 0) -> None:
        self.clock = Clock()
        loop = cast("asyncio.AbstractEventLoop", self.clock)
        self.counters = Counters()
        self.drains = FakeDrains(drains)
        self.lingering = Lingering(loop, self.counters, self.drains, seconds, limit)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.open: list[socket.socket] = []

    def arrive(self, count: int = 1) -> list[socket.socket]:
        """Add one burst and return its clients."""
        clients, batch = [], []
        for _ in range(count):
            clients.append(socket.create_connection(self.listener.getsockname(), timeout=10))
            descriptor, _ = self.listener._accept()  # type: ignore[attr-defined]
            connection = SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)
            connection.send(b"line")
            connection.shutdown(socket.SHUT_WR)
            batch.append(connection)
        self.open += clients
        self.lingering.add(batch)
        self.lingering.let_go()
        return clients

    def close(self) -> None:
        self.lingering.close_all()
        for one in (*self.open, self.listener, *self.drains.taken):
            one.close()


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    """Return a function that makes a `Bench`; all are closed afterwards."""
    made: list[Bench] = []

    def make(*args: float, **options: float) -> Bench:
        made.append(Bench(*args, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


Make = Callable[..., Bench]


def is_let_go(client: socket.socket) -> bool:
    """Tell whether the server's descriptor is closed: only then does what the client sends draw a reset."""
    client.settimeout(0.2)
    try:
        for _ in range(3):
            client.send(b"?")
    except OSError:
        return True
    return bool(client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


def test_a_client_that_stays_is_kept_for_the_linger_time_and_no_longer(bench: Make) -> None:
    """Two seconds are two seconds by the clock, and the only timer ends with them."""
    b = bench(2.0)
    b.arrive()
    b.clock.advance(1.999)
    assert len(b.lingering) == 1
    b.clock.advance(0.002)
    assert len(b.lingering) == 0
    assert b.clock.timers == []


def test_a_client_that_has_closed_is_let_go_at_the_first_look(bench: Make) -> None:
    """The first look comes by itself after a quarter of a second."""
    b = bench(2.0)
    b.arrive()[0].close()
    b.clock.advance(FIRST_LOOK)
    assert len(b.lingering) == 0
    assert b.clock.timers == []


def test_a_client_that_has_closed_is_let_go_when_the_next_one_comes(bench: Make) -> None:
    """Under load nobody waits for a timer."""
    b = bench(2.0)
    b.arrive()[0].close()
    b.arrive()
    assert len(b.lingering) == 1


def test_a_slow_client_does_not_hold_up_those_behind_it_for_long(bench: Make) -> None:
    """One that stays open delays the look at later ones until its own first look, and no longer."""
    b = bench(2.0)
    slow = b.arrive()[0]
    for client in b.arrive(3):
        client.close()
    b.clock.advance(0)
    assert len(b.lingering) == 4
    b.clock.advance(FIRST_LOOK)
    b.arrive()[0].close()
    assert len(b.lingering) == 2
    assert not is_let_go(slow)


def test_without_linger_a_connection_is_closed_at_once(bench: Make) -> None:
    """--linger 0 keeps nothing and needs no timer."""
    b = bench(0.0)
    client = b.arrive()[0]
    assert len(b.lingering) == 0
    assert b.clock.timers == []
    assert read_all(client) == b"line"


def test_when_full_the_oldest_make_room(bench: Make) -> None:
    """As many of the oldest as there is no room for are closed, counted, and the rest stay."""
    b = bench(2.0, limit=8)
    clients = [b.arrive()[0] for _ in range(4)] + b.arrive(4)
    b.clock.advance(KEPT_AT_LEAST)
    assert b.lingering.make_room(3) == 3
    assert len(b.lingering) == 5
    assert b.counters.cut_short == 3
    assert [is_let_go(client) for client in clients] == [True] * 3 + [False] * 5


def test_nobody_is_cut_short_before_having_had_a_chance(bench: Make) -> None:
    """While all are young the next ones wait in the backlog; when the process ends there is no more waiting."""
    b = bench(2.0, limit=4)
    b.arrive(3)
    assert b.lingering.make_room(2) == 1
    b.arrive()
    assert b.lingering.make_room(1) == 0
    assert b.counters.cut_short == 0
    b.lingering.hurry()
    assert b.lingering.make_room(1) == 1
    assert b.counters.cut_short == 1


def test_clients_that_have_finished_make_room_first(bench: Make) -> None:
    """Nobody is cut short while closed clients fill the queue."""
    b = bench(2.0, limit=8)
    stays = b.arrive()[0]
    for client in b.arrive(7):
        client.close()
    assert b.lingering.make_room(4) == 4
    assert b.counters.cut_short == 0
    assert not is_let_go(stays)


def test_a_burst_takes_half_of_the_room_at_most(bench: Make) -> None:
    """However many wait, there is room for one at least, and for no more than half of the limit at once."""
    assert bench(limit=8).lingering.make_room(4000) == 4
    assert bench(limit=1).lingering.make_room(4000) == 1


def test_a_client_that_is_cut_short_reads_the_line_all_the_same(bench: Make) -> None:
    """What it has sent is read before the close, so that no reset overtakes the line."""
    b = bench(2.0, limit=2)
    client = b.arrive()[0]
    client.sendall(b"EHLO client.example\r\n")
    b.arrive()
    b.clock.advance(KEPT_AT_LEAST)
    b.lingering.make_room(1)
    assert read_all(client) == b"line"


def test_a_client_that_is_still_sending_goes_to_be_drained(bench: Make) -> None:
    """Unread input when the time is up means a client that may be writing still."""
    b = bench(2.0, drains=1)
    b.arrive()[0].sendall(b"x" * 1000)
    b.clock.advance(3)
    assert len(b.drains.taken) == 1
    assert len(b.lingering) == 0


def test_without_a_free_drain_a_sending_client_lingers_on(bench: Make) -> None:
    """It gets another linger time instead of a reset; once silent, it is let go at its end."""
    b = bench(2.0, drains=0)
    b.arrive()[0].sendall(b"x" * 1000)
    b.clock.advance(2.5)
    assert len(b.lingering) == 1
    b.clock.advance(2.5)
    assert len(b.lingering) == 0


def test_a_client_that_stays_does_not_put_off_the_look_at_the_next(bench: Make) -> None:
    """One that came later and has closed is let go at its first look, though the one before it has an hour left."""
    b = bench(3600.0)
    b.arrive()
    b.clock.advance(2 * FIRST_LOOK)
    b.arrive()[0].close()
    b.clock.advance(2 * FIRST_LOOK)
    assert len(b.lingering) == 1


def test_a_look_that_is_due_in_less_than_a_millisecond_hinders_no_other(bench: Make) -> None:
    """Where an arrival and a quarter of a second add up to the least bit more than the clock shows a quarter later."""
    b = bench(2.0)
    odd = (ms / 1000 for ms in range(1 << 20) if ms / 1000 + FIRST_LOOK > (ms + 1000 * FIRST_LOOK) / 1000)
    for b.clock.now in (next(odd), next(odd)):
        b.arrive()
        b.clock.advance(FIRST_LOOK)
        b.arrive()[0].close()
        b.clock.advance(FIRST_LOOK)
        assert len(b.lingering) == 1
        b.clock.advance(2)
        assert len(b.lingering) == 0
        assert b.clock.timers == []


def test_shedding_closes_the_older_half(bench: Make) -> None:
    """When descriptors have run out, half of what lingers makes room."""
    b = bench(2.0)
    clients = [b.arrive()[0] for _ in range(6)]
    b.lingering.shed()
    assert [is_let_go(client) for client in clients] == [True] * 3 + [False] * 3
    assert b.counters.cut_short == 3


@given(st.lists(st.sampled_from(["arrive", "burst", "close", "send", "pass", "room"]), max_size=30))
def test_the_count_is_right_after_any_history(events: list[str]) -> None:
    """Invariant: never more than the limit, the count equals the sockets held, and all are let go in the end."""
    b = Bench(2.0, limit=6, drains=1)
    try:
        waiting: list[socket.socket] = []
        for event in events:
            if event in {"arrive", "burst"}:
                if room := b.lingering.make_room(1 if event == "arrive" else 3):
                    waiting += b.arrive(room)
            elif event == "close" and waiting:
                waiting.pop(0).close()
            elif event == "send" and waiting:
                try:
                    waiting[-1].send(b"x")
                except OSError:
                    waiting.pop()
            elif event == "pass":
                b.clock.advance(0.3)
            elif event == "room":
                b.lingering.make_room(2)
            held = sum(len(batch) for queue in (b.lingering._fresh, b.lingering._slow) for _, batch in queue)
            assert held == len(b.lingering)
            assert len(b.lingering) + len(b.drains) <= 6
        b.clock.advance(10)
        assert len(b.lingering) == 0
    finally:
        b.close()


@pytest.mark.parametrize("closes", [False, True])
def test_the_portable_look_agrees_with_the_kernel(*, closes: bool) -> None:
    """Where TCP_INFO is missing, a peek tells a client that stays from one that has closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        server.shutdown(socket.SHUT_WR)
        connection = SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, server.detach())
        if closes:
            client.close()
        assert tcp._has_ended(connection) is closes
        assert tcp.is_finished(connection) is closes
        connection.close()
        client.close()
