"""The Protocol of the modes with a dialogue, against a transport and a clock of the test's own."""

import pytest
from dialogues import CUTS, GREETING, LINES, MAIL, SESSION, in_chunks, replies_to
from fakes import FakeLoop, FakeTransport
from hypothesis import example, given
from hypothesis import strategies as st

from nullsmtpd.responder.dialogues import Dialogue
from nullsmtpd.responder.drain import DrainProtocol
from nullsmtpd.responder.session import COMMAND_TIMEOUT, READ_GRACE, SESSION_TIMEOUT, SessionProtocol


def converse(dialogue: Dialogue, chunks: list[bytes], error: Exception | None = None) -> FakeTransport:
    """Feed the chunks to a Protocol, and to its replacement after the final reply, as a transport does."""
    loop, sessions, transport = FakeLoop(), set[SessionProtocol](), FakeTransport(error)
    with loop.running():
        protocol = SessionProtocol(dialogue, 5, sessions)
        protocol.connection_made(transport)
        assert sessions == {protocol}
        for chunk in chunks:
            if transport.protocol is None:
                protocol.data_received(chunk)
                assert len(protocol._head) <= 6
            else:
                assert isinstance(transport.protocol, DrainProtocol)
                transport.protocol.buffer_updated(len(chunk))
        assert protocol.eof_received() is False
        (transport.protocol or protocol).connection_lost(None)
        protocol.connection_lost(None)
    assert not sessions
    assert loop.timers == []
    return transport


@given(st.sampled_from([MAIL, SESSION]), st.lists(LINES, max_size=12).map(b"".join), CUTS)
@example(MAIL, b"NOOP" + b" " * 506 + b"\r\n", [100])  # 512 octets: the longest line there is
@example(MAIL, b"NOOP" + b" " * 507 + b"\r\n", [100])
@example(SESSION, b"QUIT\rX\n", [5])
def test_the_replies_depend_on_the_lines_alone(dialogue: Dialogue, sent: bytes, cuts: list[int]) -> None:
    """Invariant: for any octets in any chunking the replies are those to the whole lines, and six octets are kept."""
    assert converse(dialogue, in_chunks(sent, cuts)).written == replies_to(dialogue, sent)


@given(st.lists(LINES, max_size=6), st.sampled_from([OSError(32, "EPIPE"), RuntimeError("closing")]))
def test_nothing_a_client_or_a_transport_does_makes_it_raise(chunks: list[bytes], error: Exception) -> None:
    """Invariant: a transport whose every write fails costs only that client its session."""
    assert converse(MAIL, chunks, error).written == b""


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


def assert_ended_by_timeout(transport: FakeTransport, protocol: SessionProtocol) -> None:
    """Assert that the client got 421 and a FIN, and gets no further reply."""
    assert transport.written.endswith(MAIL.timeout)
    assert transport.calls[-1] == "write_eof"
    written = transport.written
    protocol.data_received(b"NOOP\r\n")  # was on its way
    assert transport.written == written


def test_a_silent_client_is_timed_out(transport: FakeTransport) -> None:
    """Silence of 5 minutes by default (RFC 5321 §4.5.3.2.7) ends the session; a part of a line is no silence."""
    loop, protocol = FakeLoop(), SessionProtocol(MAIL)
    with loop.running():
        protocol.connection_made(transport)
        loop.advance(COMMAND_TIMEOUT - 1)
        protocol.data_received(b"NO")
        loop.advance(COMMAND_TIMEOUT - 1)
        assert transport.written == GREETING
        loop.advance(1)
        assert_ended_by_timeout(transport, protocol)


def test_a_client_that_never_stops_is_timed_out(transport: FakeTransport) -> None:
    """Any session ends after its total time, however often a command arrives."""
    loop, protocol = FakeLoop(), SessionProtocol(MAIL)
    with loop.running():
        protocol.connection_made(transport)
        for _ in range(int(SESSION_TIMEOUT)):
            protocol.data_received(b"N")
            assert transport.written == GREETING
            loop.advance(1)
        assert_ended_by_timeout(transport, protocol)


def test_input_that_is_read_late_is_not_silence(transport: FakeTransport) -> None:
    """A process that was stopped finds the timer due first, and reads what arrived meanwhile a little later."""
    loop, protocol = FakeLoop(), SessionProtocol(MAIL)
    with loop.running():
        protocol.connection_made(transport)
        loop.now += COMMAND_TIMEOUT + 1
        loop.advance(0)
        protocol.data_received(b"QUI")
        loop.advance(COMMAND_TIMEOUT / 2)
        assert transport.written == GREETING


def test_silence_during_a_stop_of_the_process_is_timed_out(transport: FakeTransport) -> None:
    """A little later, when what arrived meanwhile would have been read."""
    loop, protocol = FakeLoop(), SessionProtocol(MAIL)
    with loop.running():
        protocol.connection_made(transport)
        loop.now += COMMAND_TIMEOUT + 1
        loop.advance(0)
        assert transport.written == GREETING
        loop.advance(READ_GRACE)
        assert_ended_by_timeout(transport, protocol)


def test_a_client_that_does_not_read_is_aborted(transport: FakeTransport) -> None:
    """The first reply for which the kernel has no room ends the session, so that replies do not pile up here."""
    with FakeLoop().running():
        protocol = SessionProtocol(MAIL)
        protocol.connection_made(transport)
        protocol.pause_writing()
        assert "abort" not in transport.calls  # the greeting alone piles nothing up
        protocol.data_received(b"NOOP\r\n")
        protocol.pause_writing()
        assert transport.calls[-1] == "abort"
        protocol.connection_lost(None)
        protocol.pause_writing()
