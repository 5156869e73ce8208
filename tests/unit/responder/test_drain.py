"""The draining Protocol against a transport and a clock of the test's own."""

from collections.abc import Iterator

import pytest
from fakes import FakeLoop, FakeTransport
from hypothesis import given
from hypothesis import strategies as st

from nullsmtpd import DrainProtocol
from nullsmtpd.responder.drain import CLOSE_DELAY
from nullsmtpd.responder.linger import DRAIN_TIMEOUT


@pytest.fixture
def loop() -> Iterator[FakeLoop]:
    """Return the running loop."""
    fake = FakeLoop()
    with fake.running():
        yield fake


STEPS = st.lists(st.one_of(st.integers(0, 1 << 17), st.sampled_from(["eof", "lost", "wait"])), max_size=20)
ERRORS = st.sampled_from([None, OSError(32, "EPIPE"), RuntimeError("closing")])


@given(steps=STEPS, error=ERRORS, can_eof=st.booleans())
def test_no_order_of_events_makes_the_protocol_raise(
    steps: list[int | str], error: Exception | None, *, can_eof: bool
) -> None:
    """Invariant: nothing raises, and a client is aborted exactly when it exceeds its octets or its time."""
    loop, drains, transport = FakeLoop(), set[DrainProtocol](), FakeTransport(error, can_eof=can_eof)
    with loop.running():
        protocol = DrainProtocol(drains=drains, octets=1 << 18)
        protocol.connection_made(transport)
        sent, is_late, is_lost = 0, False, False
        for step in steps:
            if isinstance(step, int):
                received = min(step, len(protocol.get_buffer(step)))
                sent += received
                protocol.buffer_updated(received)
            elif step == "eof":
                assert protocol.eof_received() is False
            elif step == "wait":
                loop.advance(DRAIN_TIMEOUT)
                is_late |= not is_lost
            else:
                protocol.connection_lost(error)
                protocol.connection_lost(None)
                is_lost = True
        assert can_eof or "write_eof" not in transport.calls
        assert ("abort" in transport.calls) == (is_late or sent > 1 << 18)
        assert len(drains) == (not is_lost)
        protocol.connection_lost(None)
        assert not drains
        assert loop.timers == []


@pytest.mark.usefixtures("loop")
def test_reply_and_fin_come_first() -> None:
    """The reply is written and the connection half-closed before anything is read."""
    transport = FakeTransport()
    DrainProtocol(b"521 No\r\n", drains=set()).connection_made(transport)
    assert transport.written == b"521 No\r\n"
    assert transport.calls == ["write", "write_eof"]


def test_without_half_close_the_connection_is_closed_soon(loop: FakeLoop) -> None:
    """TLS: the client is drained for a moment, then closed, and aborted after its time if that is not the end."""
    transport = FakeTransport(can_eof=False)
    DrainProtocol(b"521 No\r\n", drains=set()).connection_made(transport)
    assert transport.calls == ["write"]
    loop.advance(CLOSE_DELAY)
    assert transport.calls == ["write", "close"]
    loop.advance(DRAIN_TIMEOUT - CLOSE_DELAY)
    assert transport.calls == ["write", "close", "abort"]


@pytest.mark.usefixtures("loop")
def test_a_connection_that_was_answered_gets_nothing_more() -> None:
    """An empty reply: the line and the FIN have been sent before."""
    transport = FakeTransport()
    DrainProtocol(b"", drains=set()).connection_made(transport)
    assert transport.calls == []


@pytest.mark.usefixtures("loop")
def test_beyond_the_limit_a_client_gets_the_reply_and_is_closed() -> None:
    """The number of draining clients is bounded; one more still gets its line."""
    drains: set[DrainProtocol] = set()
    for _ in range(2):
        DrainProtocol(drains=drains, max_drains=2).connection_made(FakeTransport())
    transport = FakeTransport()
    late = DrainProtocol(drains=drains, max_drains=2)
    late.connection_made(transport)
    assert transport.calls == ["write", "write_eof", "close"]
    assert late not in drains
    assert len(drains) == 2


@pytest.mark.usefixtures("loop")
def test_a_protocol_that_has_its_place_already_is_not_turned_away() -> None:
    """The set has one member for each connection, whether the event loop has attached it yet or not."""
    protocol, transport = DrainProtocol(b"", drains=(drains := set()), max_drains=1), FakeTransport()
    drains.add(protocol)
    protocol.connection_made(transport)
    assert transport.calls == []


@pytest.mark.parametrize("max_drains", [0, 1])
def test_a_client_has_its_time_and_no_more(loop: FakeLoop, max_drains: int) -> None:
    """Beyond the limit too: the close of a transport waits for what was written, without a timeout."""
    transport = FakeTransport()
    DrainProtocol(drains=set(), max_drains=max_drains, timeout=3.0).connection_made(transport)
    loop.advance(2.9)
    assert "abort" not in transport.calls
    loop.advance(0.2)
    assert transport.calls[-1] == "abort"


@pytest.mark.parametrize("octets", [0, 1, 1 << 20])
@pytest.mark.usefixtures("loop")
def test_a_client_has_its_octets_and_not_one_more(octets: int) -> None:
    """The limit itself is still allowed."""
    transport = FakeTransport()
    protocol = DrainProtocol(drains=set(), octets=octets)
    protocol.connection_made(transport)
    protocol.buffer_updated(octets)
    assert "abort" not in transport.calls
    protocol.buffer_updated(1)
    assert transport.calls[-1] == "abort"


def test_the_end_of_a_connection_cancels_its_timer(loop: FakeLoop) -> None:
    """Thousands of drained clients leave no timers behind, which would keep them in memory and wake the process up."""
    for _ in range(3):
        protocol = DrainProtocol(drains=set())
        protocol.connection_made(FakeTransport())
        assert len(loop.timers) == 1
        protocol.connection_lost(None)
        assert loop.timers == []
