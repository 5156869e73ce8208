"""How many lines the access log writes, by a clock of the test's own."""

import pytest
from fakes import FakeConnection, FakeLoop
from hypothesis import given
from hypothesis import strategies as st

from nullsmtpd.responder import access_log
from nullsmtpd.responder.access_log import MAX_LINES, WINDOW, AccessLog

PEER = ("192.0.2.1", 40000)


class Bench:
    """An access log whose lines are counted, and of which the next ``broken`` cannot be written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = FakeLoop()
        self.log = AccessLog(self.loop.as_loop(), "close")
        self.connections = 0
        self.lines = 0
        self.broken = 0
        self.reports: list[tuple[float, int]] = []
        monkeypatch.setattr(access_log, "log", self._write)

    def _write(self, event: str, **values: object) -> bool:
        if event == "access-suppressed":
            self.reports.append((self.loop.now, int(str(values["count"]))))
            return True
        assert event == "connection"
        self.connections += 1
        if self.broken:
            self.broken -= 1
            return False
        self.lines += 1
        return True

    def connect(self, count: int) -> None:
        for _ in range(count):
            self.log.record(FakeConnection().as_socket(), PEER)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_a_window_has_so_many_lines_and_the_next_one_as_many_again(bench: Bench) -> None:
    """Each window starts with a connection, and what exceeds it is counted."""
    bench.connect(MAX_LINES + 7)
    assert (bench.lines, bench.log.suppressed) == (MAX_LINES, 7)
    bench.loop.advance(WINDOW - 0.001)
    bench.connect(1)
    assert (bench.lines, bench.log.suppressed) == (MAX_LINES, 8)
    bench.loop.advance(0.001)
    bench.connect(MAX_LINES + 1)
    assert (bench.lines, bench.log.suppressed) == (2 * MAX_LINES, 9)


def test_what_was_suppressed_is_reported_once_at_the_end_of_its_window(bench: Bench) -> None:
    """One line with the count, no timer before there is something to report, and none afterwards."""
    bench.connect(MAX_LINES)
    assert bench.loop.timers == []
    bench.connect(100)
    bench.loop.advance(WINDOW / 2)
    bench.connect(100)
    assert bench.reports == []
    assert len(bench.loop.timers) == 1
    bench.loop.advance(WINDOW / 2)
    assert bench.reports == [(WINDOW, 200)]
    assert bench.loop.timers == []
    bench.connect(MAX_LINES + 5)
    bench.loop.advance(WINDOW)
    assert bench.reports == [(WINDOW, 200), (2 * WINDOW, 5)]


def test_lines_that_cannot_be_written_count_as_suppressed(bench: Bench) -> None:
    """They are reported too, in case that stderr takes lines again by then."""
    bench.broken = 3
    bench.connect(10)
    assert (bench.lines, bench.log.suppressed) == (7, 3)
    bench.loop.advance(WINDOW)
    assert bench.reports == [(WINDOW, 3)]


@given(st.lists(st.tuples(st.floats(0, 3 * WINDOW), st.integers(1, 2 * MAX_LINES), st.integers(0, 9)), max_size=4))
def test_every_connection_is_a_line_or_is_reported(history: list[tuple[float, int, int]]) -> None:
    """Invariant: lines + suppressed = connections; reports add up; no window exceeds its limit."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        bench = Bench(monkeypatch)
        total = 0
        for pause, count, broken in history:
            bench.loop.advance(pause)
            bench.broken = broken
            bench.connect(count)
            total += count
            assert bench.lines + bench.log.suppressed == total
            assert bench.lines <= MAX_LINES * (1 + bench.loop.now // WINDOW)
        bench.loop.advance(WINDOW)
        assert sum(count for _, count in bench.reports) == bench.log.suppressed
        assert bench.loop.timers == []
