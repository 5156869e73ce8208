"""The modes with a dialogue as clients of the process see them."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from dialogues import CLOSING, CUTS, EHLO, GREETING, HOST, LINES, MAIL, in_chunks, replies_to
from hypothesis import given
from hypothesis import strategies as st
from support import LINE, Daemon, Start, connect, read_all, starting

from nullsmtpd.cli.responder import parse_options
from nullsmtpd.responder.server import Responder
from nullsmtpd.runtime.sockets import bind, parse_address

#: The counters of clients that are connected.
LEVELS = ("talking", "draining", "lingering")


@contextlib.contextmanager
def client_of(daemon: Daemon) -> Iterator[tuple[socket.socket, Any]]:
    """Open a connection and a file over it."""
    with connect(daemon.address) as client, client.makefile("rb") as replies:
        yield client, replies


@pytest.fixture
def mail(start: Start) -> Daemon:
    return start("--mode", "mail", "--hostname", HOST)


@pytest.fixture(scope="module")
def mail_for_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with starting(tmp_path_factory.mktemp("mail")) as start:
        yield start("--mode", "mail", "--hostname", HOST)


@given(sent=st.lists(LINES, max_size=6).map(b"".join), cuts=CUTS)
def test_replies_are_those_to_the_lines(mail_for_all: Daemon, sent: bytes, cuts: list[int]) -> None:
    """Invariant: over a real connection, in any chunking, a client gets the replies to its lines, and a FIN."""
    with connect(mail_for_all.address) as client:
        for chunk in in_chunks(sent, cuts):
            client.sendall(chunk)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == replies_to(MAIL, sent)


def test_input_after_quit_does_not_cost_the_221(mail: Daemon) -> None:
    """A client that keeps sending after QUIT still reads the final reply."""
    for _ in range(50):
        with connect(mail.address) as client:
            client.sendall(b"EHLO x\r\nQUIT\r\n" + b"x" * 300_000)
            assert read_all(client) == GREETING + EHLO + CLOSING


def test_a_silent_client_gets_421(start: Start) -> None:
    """After --timeout seconds of silence: 421 and a FIN."""
    daemon = start("--mode", "mail", "--hostname", HOST, "--timeout", "0.2")
    with connect(daemon.address) as client:
        assert read_all(client) == GREETING + MAIL.timeout


def test_beyond_max_sessions_a_client_gets_the_reply_of_close(start: Start) -> None:
    """Not silence: 521 and a FIN; a session that ends makes room for another."""
    daemon = start("--mode", "mail", "--hostname", HOST, "--max-sessions", "2")
    with client_of(daemon) as (first, replies), client_of(daemon) as (_, more):
        assert replies.readline() == more.readline() == GREETING
        with connect(daemon.address) as third:
            assert read_all(third) == LINE
        first.sendall(b"QUIT\r\n")
        assert replies.read() == CLOSING
        first.close()
        daemon.wait_for(lambda: daemon.stats()["talking"] == "1", "room for a session")
        with client_of(daemon) as (_, again):
            assert again.readline() == GREETING
        assert daemon.stats()["sessions"] == "3"


def test_shutdown_ends_sessions_with_421(mail: Daemon) -> None:
    """RFC 5321 §3.8: 421 when the server shuts down; then exit status 0, without waiting for a timeout."""
    with client_of(mail) as (_, replies):
        assert replies.readline() == GREETING
        mail.process.send_signal(signal.SIGTERM)
        assert replies.read() == MAIL.shutdown
    assert mail.process.wait(20) == 0


def test_few_file_descriptors_lower_the_limit_of_sessions(start: Start) -> None:
    """With 64 file descriptors and 200 clients each gets a reply: a session, or the reply of close."""
    daemon = start("--mode", "mail", "--hostname", HOST, nofile=64)
    clients = [connect(daemon.address) for _ in range(200)]
    received = set()
    for client in clients:
        client.sendall(b"QUIT\r\n")
        received.add(read_all(client))
        client.close()
    assert received == {GREETING + CLOSING, LINE}
    assert len(daemon.lines("max-sessions-lowered")) == 1


def test_sessions_leave_nothing_behind(mail: Daemon) -> None:
    """File descriptors and counters are back where they were after a thousand sessions, however they ended."""
    before = 0
    for number in range(1000):
        if number == 4:
            mail.wait_for(lambda: {mail.stats()[level] for level in LEVELS} == {"0"}, "no client")
            before = mail.descriptors()  # the event loop keeps one in reserve from its first stream on
        with connect(mail.address) as client:
            client.sendall((b"QUIT\r\n", b"EHLO x\r\nMAIL\r\nQUIT\r\n", b"NOOP\r\n", b"half a li")[number % 4])
            if number % 4 < 2:
                read_all(client)
    mail.wait_for(lambda: {mail.stats()[level] for level in LEVELS} == {"0"}, "no client")
    mail.wait_for(lambda: mail.descriptors() == before, "the file descriptors of the start")
    assert mail.stats()["sessions"] == "1000"


def test_a_client_accepted_during_shutdown_gets_421() -> None:
    """A connection that waited in the accept queue gets its greeting and 421, not a close without a reply."""

    async def scenario() -> bytes:
        loop = asyncio.get_running_loop()
        (listener,) = bind(parse_address("127.0.0.1:0"), 100)
        address = listener.getsockname()
        options = parse_options(["--mode", "mail", "--hostname", "mx.example"], {})
        responder = Responder(loop, options, [listener], asyncio.Event())
        with connect(address) as client:
            await responder.shut_down(keep_port=True)
            return await asyncio.to_thread(read_all, client)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        received = runner.run(scenario())
    assert received.startswith(b"220 mx.example ESMTP\r\n421 ")
