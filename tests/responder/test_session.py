"""The modes with a dialogue: the Protocol against a fake transport, and the process against real clients."""

import asyncio
import contextlib
import itertools
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from hypothesis import example, given
from hypothesis import strategies as st
from support import LINE, Daemon, Start, connect, read_all, starting

from nullsmtpd.cli.responder import parse_options
from nullsmtpd.responder import session
from nullsmtpd.responder.drain import DrainProtocol
from nullsmtpd.responder.replies import Dialogue, mail_dialogue, session_dialogue
from nullsmtpd.responder.server import Responder
from nullsmtpd.responder.session import MAX_COMMANDS, SessionProtocol
from nullsmtpd.runtime.sockets import bind, parse_address

HOST = "mx.example.org"
MAIL = mail_dialogue("Host does not accept mail", HOST)
SESSION = session_dialogue("Host does not accept mail", HOST)
EHLO = b"250-mx.example.org\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250 SMTPUTF8\r\n"
CLOSING = b"221 2.0.0 mx.example.org closing connection\r\n"
GREETING = b"220 mx.example.org ESMTP\r\n"


class FakeTransport(asyncio.Transport):
    """Notes what is written, and hands on to the Protocol that takes over."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.written = b""
        self.calls: list[str] = []
        self.protocol: asyncio.BaseProtocol | None = None
        self._error = error

    def write(self, data: Any) -> None:  # noqa: ANN401 - the standard library's own signature
        if self._error:
            raise self._error
        self.written += bytes(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.calls.append(f"limits {high}")

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.calls.append("write_eof")

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("abort")


def reference(dialogue: Dialogue, said: bytes) -> bytes:
    """Return all that a client hears which says this: a function of the whole lines alone."""
    heard = dialogue.greeting
    for number, line in enumerate(said.split(b"\n")[:-1], 1):
        command = line.removesuffix(b"\r")
        words = command.replace(b"\t", b" ").split(b" ")
        known = len(line) + 1 <= 512 and len(words[0]) == 4
        reply = dialogue.replies.get(words[0].upper(), dialogue.default) if known else dialogue.default
        heard += reply
        if reply == dialogue.quit:
            return heard
        if number == MAX_COMMANDS:
            return heard + dialogue.too_many
    return heard


async def converse(dialogue: Dialogue, chunks: list[bytes], error: Exception | None = None) -> FakeTransport:
    """Feed the chunks to a Protocol, and to what replaces it, the way a transport would."""
    sessions: set[SessionProtocol] = set()
    transport = FakeTransport(error)
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
    assert protocol._timer is None
    return transport


WORDS = st.sampled_from(
    [
        b"QUIT",
        b"EHLO",
        b"helo",
        b"NoOp",
        b"RSET",
        b"MAIL",
        b"RCPT",
        b"DATA",
        b"STARTTLS",
        b"quit",
        b"NOOPS",
        b"EHL",
        b"",
    ]
)
ENDS = st.sampled_from([b"\r\n", b"\n", b"\r", b"\r\r\n", b" \r\n", b"\t x\r\n", b"\x00\r\n", b" a b\r\n", b""])
LINES = st.one_of(
    st.tuples(WORDS, ENDS).map(b"".join),
    st.binary(max_size=20),
    st.integers(500, 530).map(lambda size: b"NOOP " + b"x" * size + b"\r\n"),
    st.integers(1, 200).map(lambda count: b"NOOP\r\n" * count),
)
CUTS = st.lists(st.integers(0, 2000), max_size=12)


def in_chunks(said: bytes, cuts: list[int]) -> list[bytes]:
    marks = [0, *sorted(min(cut, len(said)) for cut in cuts), len(said)]
    return [said[begin:end] for begin, end in itertools.pairwise(marks)]


@given(st.sampled_from([MAIL, SESSION]), st.lists(LINES, max_size=12).map(b"".join), CUTS)
@example(MAIL, b"NOOP" + b" " * 506 + b"\r\n", [100])  # 512 octets: the longest line there is
@example(MAIL, b"NOOP" + b" " * 507 + b"\r\n", [100])
@example(SESSION, b"QUIT\rX\n", [5])
def test_the_replies_depend_on_the_lines_alone(dialogue: Dialogue, said: bytes, cuts: list[int]) -> None:
    """Invariant: for any octets in any chunking the replies are those of the whole lines, and six octets are kept."""
    transport = asyncio.run(converse(dialogue, in_chunks(said, cuts)))
    assert transport.written == reference(dialogue, said)


@given(st.lists(LINES, max_size=6), st.sampled_from([OSError(32, "EPIPE"), RuntimeError("closing")]))
def test_nothing_a_client_or_a_transport_does_makes_it_raise(chunks: list[bytes], error: Exception) -> None:
    """Invariant: a transport whose every write fails costs nothing but the client."""
    assert asyncio.run(converse(MAIL, chunks, error)).written == b""


@pytest.mark.parametrize("timeout", [0.01, 100])
def test_silence_and_length_have_their_bounds(timeout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence ends a session after its timeout, and any session ends after its total time: with a 421 and a FIN."""
    monkeypatch.setattr(session, "SESSION_TIMEOUT", 0.01 if timeout > 1 else 100)

    async def scenario() -> None:
        transport = FakeTransport()
        protocol = SessionProtocol(MAIL, timeout)
        protocol.connection_made(transport)
        deadline = time.monotonic() + 10
        while transport.protocol is None and time.monotonic() < deadline:
            if timeout > 1:
                protocol.data_received(b"NOOP\r\n" if transport.written == GREETING else b"NO")
            await asyncio.sleep(0.001)
        assert transport.written.startswith(GREETING)
        assert transport.written.endswith(MAIL.timeout)
        assert transport.calls[-1] == "write_eof"
        protocol.data_received(b"NOOP\r\n")  # what was under way when it left
        assert transport.written.endswith(MAIL.timeout)
        assert isinstance(transport.protocol, DrainProtocol)
        transport.protocol.connection_lost(None)

    asyncio.run(scenario())


def test_a_client_that_does_not_read_is_cut_off() -> None:
    """Replies that pile up are not kept: the first that the kernel cannot take ends the session."""

    async def scenario() -> None:
        transport = FakeTransport()
        protocol = SessionProtocol(MAIL)
        protocol.connection_made(transport)
        protocol.pause_writing()
        assert transport.calls == ["limits 0"]  # the greeting alone piles nothing up
        protocol.data_received(b"NOOP\r\n")
        protocol.pause_writing()
        assert transport.calls[-1] == "abort"
        protocol.connection_lost(None)
        protocol.pause_writing()

    asyncio.run(scenario())


@contextlib.contextmanager
def talking_to(daemon: Daemon) -> Iterator[tuple[socket.socket, Any]]:
    """Open a connection and a file over it."""
    with connect(daemon.address) as client, client.makefile("rb") as replies:
        yield client, replies


@pytest.fixture
def mail(start: Start) -> Daemon:
    return start("--mode", "mail", "--hostname", HOST)


@given(said=st.lists(LINES, max_size=6).map(b"".join), cuts=CUTS)
def test_the_process_answers_as_the_protocol_does(mail_for_all: Daemon, said: bytes, cuts: list[int]) -> None:
    """Invariant: over a real connection, in any chunking, the client hears what the lines call for, and a FIN."""
    with connect(mail_for_all.address) as client:
        for chunk in in_chunks(said, cuts):
            client.sendall(chunk)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == reference(MAIL, said)


@pytest.fixture(scope="module")
def mail_for_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with starting(tmp_path_factory.mktemp("mail")) as start:
        yield start("--mode", "mail", "--hostname", HOST)


def test_what_follows_quit_does_not_cost_the_221(mail: Daemon) -> None:
    """A client that sends on after QUIT reads the goodbye all the same."""
    for _ in range(50):
        with connect(mail.address) as client:
            client.sendall(b"EHLO x\r\nQUIT\r\n" + b"x" * 300_000)
            assert read_all(client) == GREETING + EHLO + CLOSING


def test_a_silent_client_is_told_and_let_go(start: Start) -> None:
    """After --timeout seconds of silence: 421 and a FIN."""
    daemon = start("--mode", "mail", "--hostname", HOST, "--timeout", "0.2")
    with connect(daemon.address) as client:
        assert read_all(client) == GREETING + MAIL.timeout


def test_past_max_sessions_a_client_gets_the_answer_of_close(start: Start) -> None:
    """Not silence: 521 and a FIN; a place that comes free is given away again."""
    daemon = start("--mode", "mail", "--hostname", HOST, "--max-sessions", "2")
    with talking_to(daemon) as (first, replies), talking_to(daemon) as (_, more):
        assert replies.readline() == more.readline() == GREETING
        with connect(daemon.address) as third:
            assert read_all(third) == LINE
        first.sendall(b"QUIT\r\n")
        assert replies.read() == CLOSING
        first.close()
        daemon.wait_for(lambda: daemon.stats()["talking"] == "1", "a free place")
        with talking_to(daemon) as (_, again):
            assert again.readline() == GREETING
        assert daemon.stats()["sessions"] == "3"


def test_sessions_are_told_when_the_server_ends(mail: Daemon) -> None:
    """RFC 5321 §3.8: 421 to a client whose server shuts down; then exit status 0, without waiting for a timeout."""
    with talking_to(mail) as (_, replies):
        assert replies.readline() == GREETING
        mail.process.send_signal(signal.SIGTERM)
        assert replies.read() == MAIL.shutdown
    assert mail.process.wait(20) == 0


def test_few_descriptors_lower_the_sessions_too(start: Start) -> None:
    """With 64 descriptors hundreds of clients at once each hear something: a dialogue, or the answer of close."""
    daemon = start("--mode", "mail", "--hostname", HOST, nofile=64)
    clients = [connect(daemon.address) for _ in range(200)]
    heard = set()
    for client in clients:
        client.sendall(b"QUIT\r\n")
        heard.add(read_all(client))
        client.close()
    assert heard == {GREETING + CLOSING, LINE}
    assert len(daemon.lines("max-sessions-lowered")) == 1


LEVELS = ("talking", "draining", "lingering")


def test_nothing_of_a_session_is_left_behind(mail: Daemon) -> None:
    """Descriptors and sessions are back where they were after a thousand dialogues, however they ended."""
    before = 0
    for number in range(1000):
        if number == 4:
            mail.wait_for(lambda: {mail.stats()[level] for level in LEVELS} == {"0"}, "no one there")
            before = mail.descriptors()  # the event loop keeps one in reserve from its first stream on
        with connect(mail.address) as client:
            client.sendall((b"QUIT\r\n", b"EHLO x\r\nMAIL\r\nQUIT\r\n", b"NOOP\r\n", b"half a li")[number % 4])
            if number % 4 < 2:
                read_all(client)
    mail.wait_for(lambda: {mail.stats()[level] for level in LEVELS} == {"0"}, "no one there")
    mail.wait_for(lambda: mail.descriptors() == before, "the descriptors of the start")
    assert mail.stats()["sessions"] == "1000"


def test_who_is_let_in_while_the_server_ends_is_greeted_and_told_so() -> None:
    """A connection that waited in the backlog at the end gets its greeting and the 421, not a close without a word."""

    async def scenario() -> bytes:
        loop = asyncio.get_running_loop()
        (listener,) = bind(parse_address("127.0.0.1:0"), 100, cork=False)
        address = listener.getsockname()
        options = parse_options(["--mode", "mail", "--hostname", "mx.example"], {})
        responder = Responder(loop, options, [listener], asyncio.Event())
        with connect(address) as client:
            await responder.shut_down(close_port=False)
            return await asyncio.to_thread(read_all, client)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        heard = runner.run(scenario())
    assert heard.startswith(b"220 mx.example ESMTP\r\n421 ")
