"""The responder against the RFCs, clause by clause."""

import re

import pytest
from support import LINE, Daemon, Start, connect, read_all


def answer(daemon: Daemon, *said: bytes) -> bytes:
    """Return all octets that a client gets which says something first."""
    with connect(daemon.address) as client:
        for octets in said:
            client.sendall(octets)
        return read_all(client)


def test_rfc7504_3_the_521_comes_at_connection_opening(daemon: Daemon) -> None:
    """RFC 7504 §3: 521 is returned "when a connection is opened" by a host that does not accept mail."""
    assert answer(daemon) == b"521 Host does not accept mail\r\n"


def test_rfc7504_3_the_connection_may_be_closed_after_it(daemon: Daemon) -> None:
    """RFC 7504 §3: once 521 was said, the server need not wait for QUIT; the client sees an orderly close."""
    with connect(daemon.address) as client:
        assert client.recv(512) == LINE
        assert client.recv(512) == b""


def test_rfc7504_3_and_rfc5321_3_1_nothing_follows_the_greeting(daemon: Daemon) -> None:
    """RFC 5321 §3.1: after a greeting that refuses there is no session; no command draws a second reply."""
    assert answer(daemon, b"EHLO client.example\r\nMAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA\r\nQUIT\r\n") == LINE


@pytest.mark.parametrize(
    "said", [b"", b"QUIT\r\n", b"EHLO \xff\x00\r\n", b"%s%n{0}\r\n", b"521 other\r\n", b"GET / HTTP/1.0\r\n\r\n"]
)
def test_rfc7504_7_the_reply_is_a_fixed_string(daemon: Daemon, said: bytes) -> None:
    """RFC 7504 §7: the reply does not depend on anything but the operator's configuration."""
    assert answer(daemon, said) == LINE


def test_rfc7504_7_the_reply_names_neither_software_nor_host(daemon: Daemon) -> None:
    """RFC 7504 §7: a fixed string gives nothing away about what runs here."""
    said = answer(daemon).lower()
    for telling in (b"nullsmtpd", b"python", b"uvloop", b"esmtp", b"127.0.0.1"):
        assert telling not in said


@pytest.mark.parametrize("text", ["Host does not accept mail", "x", "x" * 506, "~ !\"#$%&'()*+,-./"])
def test_rfc5321_4_2_the_reply_is_a_code_a_space_and_a_text(start: Start, text: str) -> None:
    """RFC 5321 §4.2: Greeting / Reply-line = Reply-code [ SP textstring ] CRLF, textstring of HT and %d32-126."""
    assert re.fullmatch(rb"[2-5][0-5][0-9] [\t\x20-\x7e]+\r\n", answer(start("--text", text)))


def test_rfc5321_4_2_it_is_a_single_line(daemon: Daemon) -> None:
    """RFC 5321 §4.2.1: a hyphen after the code would announce more lines; a space ends the reply."""
    reply = answer(daemon)
    assert reply[3:4] == b" "
    assert reply.count(b"\r\n") == 1
    assert reply.endswith(b"\r\n")


def test_rfc5321_4_5_3_1_5_the_longest_reply_has_512_octets(start: Start) -> None:
    """RFC 5321 §4.5.3.1.5: a reply line, code and CRLF included, is at most 512 octets."""
    assert len(answer(start("--text", "x" * 506))) == 512


def test_rfc5321_3_8_the_server_survives_clients_that_just_leave(daemon: Daemon) -> None:
    """RFC 5321 §3.8: a connection that the client drops without QUIT is closed, and the next one served."""
    for _ in range(100):
        connect(daemon.address).close()
    assert answer(daemon) == LINE
