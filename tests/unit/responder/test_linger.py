"""The linger queue, by a clock of the test's own and with connections whose clients are the test."""

from collections.abc import Callable

import pytest
from fakes import FakeConnection, FakeLoop
from hypothesis import given
from hypothesis import strategies as st

from nullsmtpd.responder.linger import (
    DRAIN_TIMEOUT,
    FIRST_SWEEP,
    MAX_DRAIN_OCTETS,
    MIN_LINGER,
    SWEEP_INTERVAL,
    LingerQueue,
)


class Bench:
    """A `LingerQueue` with a clock, and the accept path's part in it."""

    def __init__(self, seconds: float = 2.0, limit: int = 100) -> None:
        self.loop = FakeLoop()
        self.linger = LingerQueue(self.loop.as_loop(), seconds, limit)
        self.rates: list[float] = []
        self.linger.on_sweep = self._note

    def _note(self, rate: float) -> bool:
        self.rates.append(rate)
        return False

    def arrive(self, count: int = 1) -> list[FakeConnection]:
        """Do what the accept path does with answered connections."""
        connections = [FakeConnection() for _ in range(count)]
        for connection in connections:
            self.linger.queue.append(connection.as_socket())
            if self.linger.timer is None:
                self.linger.start()
        return connections

    def arrive_one_by_one(self, count: int, interval: float = SWEEP_INTERVAL) -> list[FakeConnection]:
        """Let a sweep pass between arrivals, so that some have been checked before and some have not."""
        connections = []
        for _ in range(count):
            connections += self.arrive()
            self.loop.advance(interval)
        return connections


def open_ones(connections: list[FakeConnection]) -> list[FakeConnection]:
    return [connection for connection in connections if not connection.is_closed]


@pytest.mark.parametrize("seconds", [0.1, 0.5, 2.0, 60.0])
def test_a_silent_client_is_kept_for_its_time_and_two_sweeps_at_most(seconds: float) -> None:
    """It is closed after --linger seconds, not before, and at most two sweeps later; then no timer is left."""
    bench = Bench(seconds)
    (connection,) = bench.arrive()
    bench.loop.advance(seconds - 0.001)
    assert not connection.is_closed
    bench.loop.advance(0.001 + 2 * min(SWEEP_INTERVAL, seconds / 2))
    assert connection.is_closed
    assert bench.loop.timers == []


@given(st.floats(0.02, 3), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_no_client_has_less_than_its_time(seconds: float, pauses: list[float]) -> None:
    """Invariant: whenever a client arrives between sweeps, it is open until its time is up, and closed soon after."""
    bench = Bench(seconds)
    arrivals: list[tuple[float, FakeConnection]] = []
    for pause in pauses:
        bench.loop.advance(pause)
        arrivals += [(bench.loop.time(), connection) for connection in bench.arrive()]
        for arrival, connection in arrivals:
            age = bench.loop.time() - arrival
            if age < seconds - 0.002:
                assert not connection.is_closed
            elif age > seconds + 2 * SWEEP_INTERVAL + 0.002:
                assert connection.is_closed
    bench.loop.advance(seconds + 2 * SWEEP_INTERVAL)
    assert all(connection.is_closed for _, connection in arrivals)
    assert len(bench.linger) == 0
    assert bench.loop.timers == []


def test_a_client_that_has_closed_is_gone_after_two_sweeps() -> None:
    """Its descriptor is free long before its linger time is over, though older clients stay."""
    bench = Bench(60.0)
    (stays,) = bench.arrive()
    bench.loop.advance(1)
    (closes,) = bench.arrive()
    closes.client_closes()
    bench.loop.advance(2 * SWEEP_INTERVAL)
    assert closes.is_closed
    assert not stays.is_closed
    assert len(bench.linger) == 1


def test_without_linger_time_a_connection_is_closed_at_once() -> None:
    """--linger 0 keeps nothing and needs no timer; what the client has sent is read first."""
    bench = Bench(0.0)
    connection = FakeConnection()
    connection.client_sends(10)
    bench.linger.queue.append(connection.as_socket())
    bench.linger.start()
    assert connection.is_closed
    assert not connection.was_reset
    assert (len(bench.linger), bench.linger.connections) == (0, 1)
    assert bench.loop.timers == []


def test_an_empty_queue_has_no_timer() -> None:
    """Between clients nothing wakes up the process; the next client starts the timer again."""
    bench = Bench()
    assert bench.loop.timers == []
    for _ in range(2):
        bench.arrive()[0].client_closes()
        assert bench.linger.timer is not None
        bench.loop.advance(2 * SWEEP_INTERVAL)
        assert bench.linger.timer is None
        assert bench.loop.timers == []


def test_the_oldest_is_evicted_when_all_places_are_taken() -> None:
    """One place for one client, and only the one that was evicted counts as cut short."""
    bench = Bench(60.0, limit=4)
    connections = bench.arrive_one_by_one(4)
    assert bench.linger.reserve()
    assert [connection.is_closed for connection in connections] == [True, False, False, False]
    assert bench.linger.cut_short == 1
    assert len(bench.linger) == 3


def test_ended_sessions_beyond_the_limit_make_room_at_once() -> None:
    """They join the queue without being asked; the next client does not wait until they are evicted one by one."""
    bench = Bench(60.0, limit=4)
    connections = [FakeConnection() for _ in range(50)]
    for connection in connections:
        bench.linger.add(connection.as_socket(), b"221 \r\n")
    bench.loop.advance(2 * SWEEP_INTERVAL)
    assert bench.linger.reserve()
    assert open_ones(connections) == connections[-3:]
    assert bench.linger.cut_short == 47


def test_a_client_younger_than_the_minimum_is_not_evicted() -> None:
    """There is no room before `MIN_LINGER` has passed, and there is afterwards."""
    bench = Bench(60.0, limit=4)
    connections = bench.arrive(4)
    assert not bench.linger.reserve()
    bench.loop.advance(MIN_LINGER / 2)
    assert not bench.linger.reserve()
    assert open_ones(connections) == connections
    bench.loop.advance(2 * MIN_LINGER)
    assert bench.linger.reserve()
    assert bench.linger.cut_short == 1


def test_at_shutdown_a_client_of_any_age_is_evicted() -> None:
    """The accept queue has to be answered before the process ends."""
    bench = Bench(60.0, limit=4)
    connections = bench.arrive(4)
    assert not bench.linger.reserve()
    bench.linger.allow_immediate_eviction()
    assert bench.linger.reserve()
    assert [connection.is_closed for connection in connections] == [True, False, False, False]


@pytest.mark.parametrize("shedding", [False, True])
@pytest.mark.parametrize("checked", [0, 4, 8])
def test_finished_clients_make_room_before_anyone_is_cut_short(checked: int, *, shedding: bool) -> None:
    """Wherever in the queue they are: neither the eviction of one nor shedding closes an open client before them."""
    bench = Bench(60.0, limit=8)
    connections = bench.arrive_one_by_one(checked) + bench.arrive(8 - checked)
    bench.loop.advance(SWEEP_INTERVAL if checked == 8 else 0)
    bench.loop.advance(0.2)
    for connection in connections[1::2]:
        connection.client_closes()
    if shedding:
        bench.linger.shed()
    else:
        assert bench.linger.reserve()
    assert open_ones(connections[0::2]) == connections[0::2]
    assert len(open_ones(connections)) < 8
    assert bench.linger.cut_short == 0


def test_evictions_in_a_row_do_not_look_at_everyone_again() -> None:
    """A flood of silent clients costs one look at all of them in `MIN_LINGER`, not one for each that is evicted."""
    bench = Bench(60.0, limit=100)
    connections = bench.arrive(100)
    bench.loop.advance(3 * SWEEP_INTERVAL)
    before = sum(connection.looks for connection in connections)
    for _ in range(50):
        assert bench.linger.reserve()
        connections += bench.arrive()
    assert sum(connection.looks for connection in connections) - before < 100 + 3 * 50
    assert bench.linger.cut_short == 50


def test_a_client_that_closes_just_before_its_eviction_is_not_counted() -> None:
    """`cut_short` counts clients that had not closed; between two looks at all of them one may have."""
    bench = Bench(60.0, limit=2)
    first, second = bench.arrive_one_by_one(2)
    bench.loop.advance(SWEEP_INTERVAL)
    assert bench.linger.reserve()  # after a look at all of them
    bench.arrive()
    second.client_closes()
    assert bench.linger.reserve()
    assert first.is_closed
    assert second.is_closed
    assert bench.linger.cut_short == 1


@pytest.mark.parametrize("count", range(9))
@pytest.mark.parametrize("checked", [False, True])
def test_shedding_keeps_the_newer_half_rounded_down(count: int, *, checked: bool) -> None:
    """With an odd number the larger part goes: of a single client that nothing remains frees one descriptor."""
    bench = Bench(60.0)
    connections = bench.arrive_one_by_one(count) if checked else bench.arrive(count)
    bench.linger.shed()
    assert open_ones(connections) == connections[count - count // 2 :]
    assert bench.linger.cut_short == count - count // 2


def evict(bench: Bench) -> None:
    bench.linger.allow_immediate_eviction()
    assert bench.linger.reserve()


def shed(bench: Bench) -> None:
    bench.linger.shed()


def close_all(bench: Bench) -> None:
    bench.linger.close_all()


@pytest.mark.parametrize("close", [evict, shed, close_all])
@pytest.mark.parametrize("checked", [False, True])
def test_unread_input_is_read_before_a_client_is_closed(close: Callable[[Bench], None], *, checked: bool) -> None:
    """So that no reset overtakes the line."""
    bench = Bench(60.0, limit=2)
    connections = bench.arrive(2)
    for connection in connections:
        connection.client_sends(1 << 15)
    if checked:
        bench.loop.advance(2 * SWEEP_INTERVAL)
    close(bench)
    closed = [connection for connection in connections if connection.is_closed]
    assert closed
    assert not any(connection.was_reset for connection in closed)


def test_a_client_that_is_still_sending_at_its_deadline_is_drained() -> None:
    """Unread input when the time is up means a client that may be writing still; a silent one is closed."""
    bench = Bench(2.0)
    talking, silent = bench.arrive(2)
    talking.client_sends(1000)
    bench.loop.advance(2 + 2 * SWEEP_INTERVAL)
    assert (len(bench.linger.draining), bench.linger.drained, len(bench.linger)) == (1, 1, 0)
    assert silent.is_closed
    talking.client_sends(MAX_DRAIN_OCTETS // 2)
    bench.loop.advance(1)
    assert not talking.is_closed
    assert talking.unread < MAX_DRAIN_OCTETS // 2
    talking.client_closes()
    bench.loop.advance(1)
    assert talking.is_closed
    assert (len(bench.linger.draining), bench.linger.drained, bench.linger.cut_short) == (0, 1, 0)
    assert bench.loop.timers == []


def draining(bench: Bench) -> FakeConnection:
    """Return a connection that is drained from now on."""
    (connection,) = bench.arrive()
    connection.client_sends(1)
    while not bench.linger.draining:
        bench.loop.advance(0.01)
    return connection


def test_a_client_is_drained_for_its_time_and_no_longer() -> None:
    """Though it sends little."""
    bench = Bench(2.0)
    connection = draining(bench)
    for _ in range(10):
        connection.client_sends(1)
        bench.loop.advance(DRAIN_TIMEOUT / 10 - 0.001)
        assert not connection.is_closed
    bench.loop.advance(0.2)
    assert connection.is_closed
    assert bench.loop.timers == []


def test_a_client_is_drained_for_its_octets_and_no_more() -> None:
    """Though its time is not up."""
    bench = Bench(2.0)
    connection = draining(bench)
    for _ in range(MAX_DRAIN_OCTETS >> 15):
        connection.client_sends(1 << 15)
        bench.loop.advance(0.051)
        assert not connection.is_closed
    connection.client_sends(2)  # one was read before it was drained
    bench.loop.advance(0.051)
    assert connection.is_closed


def test_drains_end_while_clients_go_on_arriving() -> None:
    """Neither puts off the sweeps of the others."""
    bench = Bench(2.0)
    connection = draining(bench)
    arrived = []
    while bench.linger.draining:
        arrived += bench.arrive()
        bench.loop.advance(0.03)
    assert connection.is_closed
    assert len(open_ones(arrived)) <= (2 + 2 * SWEEP_INTERVAL) / 0.03 + 1
    assert max(bench.rates) <= 1.2 / 0.03


def test_a_client_that_sent_and_closed_needs_no_drain() -> None:
    """At its deadline it is closed, though nobody has read what it sent."""
    bench = Bench(2.0)
    (connection,) = bench.arrive()
    bench.loop.advance(1)
    connection.client_sends(1000)
    connection.client_closes()
    bench.loop.advance(2)
    assert connection.is_closed
    assert bench.linger.drained == 0


@pytest.mark.parametrize(("limit", "drains"), [(100, 25), (8, 2), (5, 1), (3, 0)])
def test_a_quarter_of_the_limit_may_be_drained_at_once(limit: int, drains: int) -> None:
    """The others get a further round of lingering: they are neither closed nor reset."""
    bench = Bench(2.0, limit)
    connections = bench.arrive(limit)
    for connection in connections:
        connection.client_sends(1)
    bench.loop.advance(2 + 2 * SWEEP_INTERVAL)
    assert len(bench.linger.draining) == drains
    assert open_ones(connections) == connections
    assert len(bench.linger) == limit - drains


def test_a_client_for_which_there_is_no_drain_is_closed_once_it_is_silent() -> None:
    """At its next deadline; as long as it goes on sending, it lingers."""
    bench = Bench(2.0, limit=1)
    (connection,) = bench.arrive()
    for _ in range(3):
        connection.client_sends(1000)
        bench.loop.advance(2 + SWEEP_INTERVAL)  # one deadline, not the next one
        assert not connection.is_closed
        assert len(bench.linger) == 1
    bench.loop.advance(2 * (2 + 2 * SWEEP_INTERVAL))
    assert connection.is_closed
    assert not connection.was_reset
    assert (bench.linger.cut_short, bench.linger.drained) == (0, 0)


def test_a_drain_that_becomes_free_takes_a_waiting_client() -> None:
    """After a further round of lingering."""
    bench = Bench(2.0, limit=4)
    first, second = bench.arrive(2)
    for _ in range(2):
        first.client_sends(1)
        second.client_sends(1)
        bench.loop.advance(2 + 2 * SWEEP_INTERVAL)
        assert bench.linger.drained == 1
    first.client_closes()
    second.client_sends(1)
    bench.loop.advance(2 + 2 * SWEEP_INTERVAL)
    assert first.is_closed
    assert bench.linger.drained == 2


def test_drained_clients_take_places_too() -> None:
    """The limit holds for lingering and drained clients together: each has a descriptor."""
    bench = Bench(0.5, limit=8)
    for connection in bench.arrive(2):
        connection.client_sends(1)
    bench.loop.advance(1.5)
    assert len(bench.linger.draining) == 2
    bench.arrive(6)
    assert not bench.linger.reserve()


def test_a_socket_that_had_a_session_lingers_and_is_no_connection_of_its_own() -> None:
    """`connections` counts what the accept path has appended."""
    bench = Bench(2.0)
    connection = FakeConnection()
    bench.linger.add(connection.as_socket(), b"221 \r\n")
    assert (len(bench.linger), bench.linger.connections) == (1, 0)
    bench.arrive()
    bench.loop.advance(2 + 2 * SWEEP_INTERVAL)
    assert connection.is_closed
    assert (len(bench.linger), bench.linger.connections) == (0, 1)
    assert bench.loop.timers == []


def test_closing_everything_stops_the_timer() -> None:
    """At shutdown no client and no timer is left."""
    bench = Bench(60.0)
    connections = bench.arrive_one_by_one(2) + bench.arrive(2)
    drained_one = draining(other := Bench(2.0))
    bench.linger.close_all()
    other.linger.close_all()
    assert open_ones([*connections, drained_one]) == []
    assert (len(bench.linger), len(other.linger.draining)) == (0, 0)
    assert bench.linger.connections == 4
    other.loop.advance(0.1)
    assert other.loop.timers == []
    assert bench.linger.timer is None
    assert bench.loop.timers == []


def test_each_sweep_reports_the_rate_of_arrivals_since_the_last_one() -> None:
    """By which bursts are detected; the first sweep comes soon, and counts from the first client."""
    bench = Bench(60.0)
    for count, interval in ((2, FIRST_SWEEP), (500, SWEEP_INTERVAL), (0, SWEEP_INTERVAL), (3, SWEEP_INTERVAL)):
        bench.arrive(count)
        bench.loop.advance(interval)
    assert bench.rates == pytest.approx([2 / FIRST_SWEEP, 500 / SWEEP_INTERVAL, 0, 3 / SWEEP_INTERVAL])


def test_an_idle_time_does_not_dilute_the_rate() -> None:
    """After an hour without clients the first sweep has one interval to report on, not an hour."""
    bench = Bench(2.0)
    bench.arrive()
    bench.loop.advance(3600)
    bench.rates.clear()
    bench.arrive(500)
    bench.loop.advance(FIRST_SWEEP)
    assert bench.rates == pytest.approx([500 / FIRST_SWEEP])


def test_an_error_in_a_sweep_does_not_stop_the_sweeps() -> None:
    """Otherwise no client would ever be closed again."""
    bench = Bench(0.5)
    bench.linger.on_sweep = lambda _: bool(1 // 0)
    (connection,) = bench.arrive()
    for _ in range(5):
        if bench.linger.timer is not None:
            with pytest.raises(ZeroDivisionError):
                bench.loop.advance(SWEEP_INTERVAL)
    assert connection.is_closed
    assert bench.linger.timer is None


class History(Bench):
    """A queue to which anything may happen, in any order."""

    def __init__(self) -> None:
        super().__init__(2.0, limit=6)
        self.everyone: list[FakeConnection] = []
        self.events: dict[str, Callable[[int], object]] = {
            "arrive": lambda _: self._come(1),
            "burst": lambda _: self._come(3),
            "close": lambda number: self._any(number, FakeConnection.client_closes),
            "send": lambda number: self._any(number, lambda client: client.client_sends(number)),
            "pass": lambda _: self.loop.advance(0.05),
            "wait": lambda _: self.loop.advance(0.5),
            "reserve": lambda _: self.linger.reserve(),
            "shed": lambda _: self.linger.shed(),
            "finished": lambda number: self.linger.sweep_all() if number % 2 else self.linger.close_head(),
        }

    def _come(self, count: int) -> None:
        for _ in range(count):
            if len(self.linger) + len(self.linger.draining) < self.linger.limit or self.linger.reserve():
                self.everyone += self.arrive()

    def _any(self, number: int, act: Callable[[FakeConnection], None]) -> None:
        if left := open_ones(self.everyone):
            act(left[number % len(left)])


@given(st.lists(st.tuples(st.sampled_from(sorted(History().events)), st.integers(0, 9)), max_size=40))
def test_the_numbers_are_right_after_any_history(events: list[tuple[str, int]]) -> None:
    """Invariant: open = lingering + drained <= limit; `connections` counts arrivals; no reset; nothing is left."""
    history = History()
    linger = history.linger
    for name, number in events:
        history.events[name](number)
        assert len(open_ones(history.everyone)) == len(linger) + len(linger.draining) <= 6
        assert linger.connections == len(history.everyone)
        assert linger.cut_short + linger.drained <= len(history.everyone)
        assert linger.timer is not None or len(linger) == 0
    history.loop.advance(2 * (2 + 2 * SWEEP_INTERVAL) + DRAIN_TIMEOUT + 1)
    assert open_ones(history.everyone) == []
    assert not any(connection.was_reset for connection in history.everyone)
    assert history.loop.timers == []
