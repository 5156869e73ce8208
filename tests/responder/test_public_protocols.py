"""The public Protocols on real event loops and sockets, without the responder."""

import asyncio
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop
from dialogues import CLOSING, EHLO, GREETING, MAIL
from support import LINE, connect, read_all, require_tools

from nullsmtpd import DrainProtocol, SessionProtocol

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
each_loop = pytest.mark.parametrize("new_loop", LOOPS, ids=["asyncio", "uvloop"])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a certificate for localhost, signed by its own key, and of that key."""
    require_tools("openssl")
    file = tmp_path_factory.mktemp("tls") / "localhost.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", file, "-out", file.with_suffix(".crt")], check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + file.with_suffix(".crt").read_bytes())
    return file


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


def over_tls(
    new_loop: NewLoop,
    certificate: Path,
    factory: Callable[[], asyncio.BaseProtocol],
    client: Callable[[ssl.SSLSocket], bytes],
) -> bytes:
    """Return what a client receives from a server with TLS from the start; an end without close_notify is an error."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=certificate)

    def run_client(address: tuple[str, int]) -> bytes:
        with (
            connect(address) as connection,
            trusting.wrap_socket(connection, server_hostname="localhost", suppress_ragged_eofs=False) as encrypted,
        ):
            return client(encrypted)

    async def scenario() -> bytes:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(factory, "127.0.0.1", 0, ssl=context)
        try:
            return await asyncio.to_thread(run_client, server.sockets[0].getsockname())
        finally:
            server.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(scenario())


@each_loop
def test_over_tls_the_line_is_followed_by_close_notify(new_loop: NewLoop, certificate: Path) -> None:
    """TLS in asyncio has no half-close: a client that reads to the end gets that end, and no reset after a timeout."""
    assert over_tls(new_loop, certificate, DrainProtocol, read_all) == LINE


@each_loop
def test_input_after_the_line_over_tls_resets_nobody(new_loop: NewLoop, certificate: Path) -> None:
    """A client that is still sending when it gets the line can finish, and read the end."""

    def client(connection: ssl.SSLSocket) -> bytes:
        line = connection.recv(99)
        connection.sendall(b"x" * 300_000)
        return line + read_all(connection)

    assert over_tls(new_loop, certificate, DrainProtocol, client) == LINE


@each_loop
def test_a_session_over_tls_lasts_until_quit(new_loop: NewLoop, certificate: Path) -> None:
    """RFC 5321 §4.1.1.10: every reply, 221 to QUIT, and then the end of the connection."""

    def client(connection: ssl.SSLSocket) -> bytes:
        received = b""
        with connection.makefile("rb") as replies:
            for command in (b"", b"NOOP", b"RSET", b"MAIL FROM:<>", b"EHLO x", b"QUIT"):
                if command:
                    connection.sendall(command + b"\r\n")
                while (line := replies.readline())[3:4] == b"-":
                    received += line
                received += line
            return received + replies.read()

    done = MAIL.replies[b"NOOP"]
    received = over_tls(new_loop, certificate, lambda: SessionProtocol(MAIL), client)
    assert received == GREETING + done + done + MAIL.default + EHLO + CLOSING
