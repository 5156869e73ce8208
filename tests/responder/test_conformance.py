"""The responder against the RFCs, clause by clause."""

import re
import signal
from collections.abc import Iterator

import pytest
from dialogues import CLOSING, EHLO, GREETING, HOST
from hypothesis import example, given
from hypothesis import strategies as st
from support import LINE, Daemon, Start, connect, read_all, starting

HELO = b"250 mx.example.org\r\n"
OK = b"250 2.0.0 OK\r\n"
REFUSED = b"521 5.3.2 Host does not accept mail\r\n"
TOO_MANY = b"421 4.7.0 mx.example.org Too many commands\r\n"


def received(daemon: Daemon, sent: bytes = b"") -> bytes:
    """Return all octets that a client receives which sends these first."""
    with connect(daemon.address) as client:
        client.sendall(sent)
        return read_all(client)


def test_rfc7504_3_the_521_comes_at_connection_opening(daemon: Daemon) -> None:
    """RFC 7504 §3: 521 is returned "when a connection is opened" by a host that does not accept mail."""
    assert received(daemon) == b"521 Host does not accept mail\r\n"


def test_rfc7504_3_the_connection_may_be_closed_after_it(daemon: Daemon) -> None:
    """RFC 7504 §3: after 521 the server need not wait for QUIT; the client sees an orderly close."""
    with connect(daemon.address) as client:
        assert client.recv(512) == LINE
        assert client.recv(512) == b""


def test_rfc7504_3_and_rfc5321_3_1_nothing_follows_the_greeting(daemon: Daemon) -> None:
    """RFC 5321 §3.1: after a greeting that refuses there is no session; no command gets a second reply."""
    assert received(daemon, b"EHLO client.example\r\nMAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA\r\nQUIT\r\n") == LINE


@pytest.mark.parametrize(
    "sent", [b"", b"QUIT\r\n", b"EHLO \xff\x00\r\n", b"%s%n{0}\r\n", b"521 other\r\n", b"GET / HTTP/1.0\r\n\r\n"]
)
def test_rfc7504_7_the_reply_is_a_fixed_string(daemon: Daemon, sent: bytes) -> None:
    """RFC 7504 §7: the reply does not depend on anything but the operator's configuration."""
    assert received(daemon, sent) == LINE


def test_rfc7504_7_the_reply_names_neither_software_nor_host(daemon: Daemon) -> None:
    """RFC 7504 §7: a fixed string discloses nothing about the software or the host."""
    reply = received(daemon).lower()
    for disclosure in (b"nullsmtpd", b"python", b"uvloop", b"esmtp", b"127.0.0.1"):
        assert disclosure not in reply


@pytest.mark.parametrize("text", ["Host does not accept mail", "x", "x" * 506, "~ !\"#$%&'()*+,-./"])
def test_rfc5321_4_2_the_reply_is_a_code_a_space_and_a_text(start: Start, text: str) -> None:
    """RFC 5321 §4.2: Greeting / Reply-line = Reply-code [ SP textstring ] CRLF, textstring of HT and %d32-126."""
    assert re.fullmatch(rb"[2-5][0-5][0-9] [\t\x20-\x7e]+\r\n", received(start("--text", text)))


def test_rfc5321_4_2_it_is_a_single_line(daemon: Daemon) -> None:
    """RFC 5321 §4.2.1: a hyphen after the code would announce more lines; a space ends the reply."""
    reply = received(daemon)
    assert reply[3:4] == b" "
    assert reply.count(b"\r\n") == 1
    assert reply.endswith(b"\r\n")


def test_rfc5321_4_5_3_1_5_the_longest_reply_has_512_octets(start: Start) -> None:
    """RFC 5321 §4.5.3.1.5: a reply line, code and CRLF included, is at most 512 octets."""
    assert len(received(start("--text", "x" * 506))) == 512


def test_rfc5321_3_8_the_server_survives_clients_that_disconnect(daemon: Daemon) -> None:
    """RFC 5321 §3.8: a connection that the client drops without QUIT is closed, and the next one served."""
    for _ in range(100):
        connect(daemon.address).close()
    assert received(daemon) == LINE


@pytest.fixture
def mail(start: Start) -> Daemon:
    return start("--mode", "mail", "--hostname", HOST)


def replies_to(daemon: Daemon, *commands: bytes) -> list[bytes]:
    """Return the greeting and the reply to each command, which is sent after the reply before it was received."""
    with connect(daemon.address) as client, client.makefile("rb") as octets:
        replies = [read_reply(octets)]
        for command in commands:
            client.sendall(command + b"\r\n")
            replies.append(read_reply(octets))
        return replies


def read_reply(octets: Iterator[bytes]) -> bytes:
    """Read the lines of one reply (RFC 5321 §4.2.1: a hyphen after the code of every line except the last)."""
    reply = next(octets, b"")
    while reply and reply.splitlines()[-1][3:4] == b"-":
        reply += next(octets)
    return reply


def test_rfc7504_3_mail_is_refused_after_the_greeting_too(mail: Daemon) -> None:
    """RFC 7504 §3 allows 521 "in other situations", RFC 3463 §3.4 has X.3.2 for a host that takes no messages."""
    replies = replies_to(mail, b"EHLO client.example", b"MAIL FROM:<a@client.example>", b"RSET", b"QUIT")
    assert replies == [GREETING, EHLO, REFUSED, OK, CLOSING]


COMMANDS = [b"MAIL FROM:<>", b"RCPT TO:<a@b>", b"DATA", b"VRFY x", b"AUTH PLAIN", b"STARTTLS", b"X", b""]


@pytest.mark.parametrize("command", [*COMMANDS, b"EHLO x", b"HELO x", b"NOOP", b"RSET"])
def test_rfc7504_3_session_replies_521_to_everything_but_quit(start: Start, command: bytes) -> None:
    """RFC 7504 §3: a server that does not close after 521 waits for QUIT and replies 521 to every other command."""
    daemon = start("--mode", "session", "--hostname", HOST)
    replies = replies_to(daemon, command, command, b"quit")
    assert replies == [LINE, LINE, LINE, b"221 mx.example.org closing connection\r\n"]


@pytest.mark.parametrize("command", COMMANDS)
def test_rfc7504_3_mail_replies_521_to_every_other_command(mail: Daemon, command: bytes) -> None:
    """RFC 7504 §3 allows 521 "in other situations": MAIL and every command that is not offered get it."""
    assert replies_to(mail, command, b"NOOP") == [GREETING, REFUSED, OK]


def test_rfc5321_4_2_1_each_line_of_the_ehlo_reply_has_the_code(mail: Daemon) -> None:
    """RFC 5321 §4.2.1: one code on every line, a hyphen after it on all lines except the last, which has a space."""
    *first, last = replies_to(mail, b"EHLO client.example")[1].splitlines()
    assert {line[:4] for line in first} == {b"250-"}
    assert last[:4] == b"250 "


def test_rfc5321_4_1_1_1_the_ehlo_reply_has_the_host_and_then_keywords(mail: Daemon) -> None:
    """RFC 5321 §4.1.1.1: ehlo-ok-rsp has the Domain on its first line and one ehlo-keyword on each line after it."""
    host, *keywords = [line[4:] for line in replies_to(mail, b"EHLO client.example")[1].splitlines()]
    assert host == HOST.encode()
    assert all(re.fullmatch(rb"[A-Za-z0-9][A-Za-z0-9-]*", keyword) for keyword in keywords)


def test_rfc6531_3_1_a_server_with_smtputf8_offers_8bitmime(mail: Daemon) -> None:
    """RFC 6531 §3.1: the keyword SMTPUTF8 has no parameters, and 8BITMIME is announced with it."""
    offered = {line[4:] for line in replies_to(mail, b"EHLO client.example")[1].splitlines()}
    assert offered >= {b"SMTPUTF8", b"8BITMIME"}


def test_rfc6531_3_4_a_mail_command_with_smtputf8_is_refused_as_any_other(mail: Daemon) -> None:
    """RFC 6531 §3.4: where SMTPUTF8 is offered, MAIL may have the parameter and an address in UTF-8."""
    command = "MAIL FROM:<jörg@bücher.example> BODY=8BITMIME SMTPUTF8".encode()
    assert replies_to(mail, "EHLO bücher.example".encode(), command) == [GREETING, EHLO, REFUSED]


def test_rfc2034_3_the_keyword_has_no_parameters(mail: Daemon) -> None:
    """RFC 2034 §3: the EHLO keyword is ENHANCEDSTATUSCODES, without parameters."""
    assert b"ENHANCEDSTATUSCODES" in {line[4:] for line in replies_to(mail, b"EHLO client.example")[1].splitlines()}


@pytest.mark.parametrize("hello", [b"EHLO client.example", b"HELO client.example", b"NOOP"])
def test_rfc2034_4_every_reply_has_a_code_of_its_class(mail: Daemon, hello: bytes) -> None:
    """RFC 2034 §4: 2xx, 4xx and 5xx have a code of that class; the greeting and the reply to EHLO or HELO have none."""
    greeting, first, *later = replies_to(mail, hello, *COMMANDS, b"NOOP", b"RSET", b"QUIT")
    for reply in (*later, *([first] if hello == b"NOOP" else [])):
        assert re.match(rb"([245])\d\d \1\.\d{1,3}\.\d{1,3} ", reply)
    for reply in (greeting, *([] if hello == b"NOOP" else [first])):
        assert not re.search(rb"^...[ -]\d\.", reply, re.MULTILINE)


def test_rfc2034_4_the_replies_that_end_a_session_have_a_code_too(start: Start) -> None:
    """RFC 2034 §4 and RFC 3463: 4.4.2 for a timeout, 4.7.0 for too many commands, 4.3.2 for a shutdown."""
    daemon = start("--mode", "mail", "--hostname", HOST, "--timeout", "0.2")
    assert received(daemon) == GREETING + b"421 4.4.2 mx.example.org Timeout\r\n"
    assert received(daemon, b"NOOP\r\n" * 120) == GREETING + OK * 110 + TOO_MANY
    daemon = start("--mode", "mail", "--hostname", HOST)
    with connect(daemon.address) as client, client.makefile("rb") as octets:
        assert read_reply(octets) == GREETING
        daemon.process.send_signal(signal.SIGTERM)
        assert octets.read() == b"421 4.3.2 mx.example.org Service shutting down\r\n"


def test_rfc5321_4_1_1_1_helo_offers_nothing(mail: Daemon) -> None:
    """RFC 5321 §4.1.1.1: a server must not send the extended reply of EHLO to HELO."""
    assert replies_to(mail, b"HELO client.example")[1] == HELO


def test_rfc5321_4_1_4_noop_and_rset_need_no_ehlo(mail: Daemon) -> None:
    """RFC 5321 §4.1.4: NOOP, RSET and QUIT come in any order, also before EHLO; EHLO may come again."""
    replies = replies_to(mail, b"NOOP", b"RSET", b"EHLO a.example", b"EHLO b.example", b"HELO c.example", b"QUIT")
    assert replies == [GREETING, OK, OK, EHLO, EHLO, HELO, CLOSING]


@pytest.mark.parametrize("command", [b"noop", b"NoOp", b"NOOP x y", b"RSET", b"rset"])
def test_rfc5321_2_4_verbs_are_not_case_sensitive(mail: Daemon, command: bytes) -> None:
    """RFC 5321 §2.4: commands are not case sensitive; RFC 5321 §4.1.1.9: a parameter of NOOP is ignored."""
    assert replies_to(mail, command) == [GREETING, OK]


@pytest.fixture(scope="module")
def mail_for_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with starting(tmp_path_factory.mktemp("mail")) as start:
        yield start("--mode", "mail", "--hostname", HOST)


VERBS = st.sampled_from([b"EHLO", b"HELO", b"NOOP", b"RSET", b"MAIL", b"QUIT", b""])
# The replies to whole lines, however many; after them the reply to QUIT, or to one command too many.
FIXED = re.compile(
    b"%b(?:%b|%b|%b|%b)*(?:%b|%b)" % tuple(map(re.escape, (GREETING, EHLO, HELO, OK, REFUSED, CLOSING, TOO_MANY)))
)


@given(st.lists(st.tuples(VERBS, st.binary(max_size=60)).map(b" ".join), max_size=12).map(b"\r\n".join))
@example(b"EHLO " + b"x" * 600 + b"\r\nMAIL FROM:<\r\n250 2.0.0 OK\r\n>\r\n")
@example(b"EHLO %s%n{0}${hostname}\r\nHELO `id`\r\nMAIL\0\r\n")
def test_rfc7504_7_every_reply_is_a_fixed_string(mail_for_all: Daemon, sent: bytes) -> None:
    """Invariant (RFC 7504 §7): whatever a client sends, it receives the fixed replies and nothing else."""
    with connect(mail_for_all.address) as client:
        client.sendall(sent + b"\r\nQUIT\r\n")
        assert FIXED.fullmatch(read_all(client))
