"""Behind a load balancer that sends the client's address: the PROXY protocol (haproxy's proxy-protocol.txt)."""

import socket
import struct
import subprocess
from pathlib import Path

import pytest
from support import LINE, PATIENCE, Daemon, Start, connect, read_all, require_tools

V1 = b"PROXY TCP4 192.0.2.1 192.0.2.25 40000 25\r\n"

# §2.2: the signature, version 2 and PROXY, TCP over IPv4, the length of what follows: addresses and ports.
V2 = b"\r\n\r\n\x00\r\nQUIT\n" + struct.pack(">BBH4s4sHH", 0x21, 0x11, 12, b"\xc0\0\2\1", b"\xc0\0\2\x19", 40000, 25)

each_version = pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])


@each_version
@pytest.mark.parametrize("octets", [b"", b"QUIT\r\n", b"EHLO client.example\r\nMAIL FROM:<>\r\n"])
def test_client_behind_a_header_reads_the_line_and_no_reset(daemon: Daemon, header: bytes, octets: bytes) -> None:
    """Mode close interprets no input, so a header, and what the client sends after it, changes nothing."""
    with connect(daemon.address) as client:
        client.sendall(header)
        client.sendall(octets)
        assert read_all(client) == LINE
        client.sendall(b"QUIT\r\n")
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
def test_client_behind_haproxy_reads_the_line(daemon: Daemon, tmp_path: Path, option: str) -> None:
    """A balancer that sends the header passes the line and the FIN on, also to an early talker."""
    require_tools("haproxy")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = tmp_path / "haproxy.cfg"
        config.write_text(HAPROXY.format(listener=listener.fileno(), port=daemon.address[1], option=option))
        command = ("haproxy", "-db", "-f", str(config))
        with subprocess.Popen(command, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL) as haproxy:
            try:
                for octets in (b"", b"QUIT\r\n") * 10:
                    with connect(listener.getsockname()) as client:
                        client.sendall(octets)
                        assert read_all(client) == LINE
            finally:
                haproxy.kill()
    assert daemon.stats()["connections"] == "20"


HAPROXY = f"""
defaults
    mode tcp
    timeout connect {PATIENCE:.0f}s
    timeout client {PATIENCE:.0f}s
    timeout server {PATIENCE:.0f}s
listen smtp
    bind fd@{{listener}}
    server nullsmtpd 127.0.0.1:{{port}} {{option}}
"""

# The greeting, the reply to an unknown command, the replies to EHLO and QUIT.
SESSION = ("521 Host does not accept mail",) * 3 + ("221 host.example closing connection",)
EHLO = "250-host.example\n250-8BITMIME\n250-ENHANCEDSTATUSCODES\n250 SMTPUTF8"
MAIL = (
    "220 host.example ESMTP",
    "521 5.3.2 Host does not accept mail",
    EHLO,
    "221 2.0.0 host.example closing connection",
)


@pytest.mark.parametrize(("mode", "replies"), [("session", SESSION), ("mail", MAIL)])
def test_version_1_is_an_unknown_command_to_a_dialogue(start: Start, mode: str, replies: tuple[str, ...]) -> None:
    """The modes with a dialogue reply to it, so that a client is one reply behind from then on."""
    assert dialogue(start, mode, V1) == "\n".join(replies)


@pytest.mark.parametrize(("mode", "replies"), [("session", SESSION), ("mail", MAIL)])
def test_version_2_is_quit_to_a_dialogue(start: Start, mode: str, replies: tuple[str, ...]) -> None:
    """Its signature has the line QUIT, after three others: the modes with a dialogue end the session."""
    greeting, refusal, _, closing = replies
    assert dialogue(start, mode, V2) == "\n".join([greeting, *[refusal] * 3, closing])


def dialogue(start: Start, mode: str, header: bytes) -> str:
    """Return what a client receives that sends EHLO and QUIT after the header."""
    daemon = start("--mode", mode, "--hostname", "host.example")
    with connect(daemon.address) as client:
        client.sendall(header)
        client.sendall(b"EHLO client.example\r\nQUIT\r\n")
        return "\n".join(read_all(client).decode().splitlines())
