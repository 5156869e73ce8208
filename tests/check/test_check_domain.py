"""`nullsmtpd check --domain`: a real name server on loopback, and a server of each kind behind its names."""

import asyncio
import contextlib
import json
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import dns.exception
import dns.message
import dns.query
import dns.resolver
import pytest
from misbehaving import FIN, HOLD, LISTEN, Server
from name_server import name_server
from support import LINE, PATIENCE, require, require_tools, run_cli, starting

import nullsmtpd
from nullsmtpd.check.dialogue import ANY, Reply
from nullsmtpd.check.outcome import FIN as FIN_SEEN
from nullsmtpd.check.outcome import LEFT, NO_FAMILY, REFUSED, RESET, SILENCE, UNREACHABLE, Probe
from nullsmtpd.check.report import domain_lines
from nullsmtpd.check.verdicts import Answer, answer_of, verdict_on

# Where each kind of server is. They share a port, as they would share port 25.
SAYS_521, SAYS_521_AT_MAIL, TAKES_MAIL, NOT_NOW, SILENT, BROKEN, NOTHING = (f"127.0.0.{n}" for n in range(2, 9))

DEEDS: dict[str, Sequence[bytes | str]] = {
    TAKES_MAIL: [b"220 a\r\n", LISTEN, b"250-a\r\n250 HELP\r\n", LISTEN, b"250 OK\r\n", LISTEN, b"221 bye\r\n", FIN],
    NOT_NOW: [b"421 later\r\n", FIN],
    SILENT: [HOLD],
    BROKEN: [b"SSH-2.0-x\r\n", HOLD],
}

NO_MX = nullsmtpd.MXAnswer("example", (), exists=True, ttl=0)

#: Of dnsmasq; it has no option for a null MX, so the data of those are in hexadecimal: preference, and the root.
ZONE = (
    "--dns-rr=null.example,15,000000",
    f"--host-record=null.example,{SAYS_521}",
    "--dns-rr=bare.example,15,000000",
    "--dns-rr=closed.example,15,000000",
    f"--host-record=closed.example,{NOTHING}",
    "--dns-rr=open.example,15,000000",
    f"--host-record=open.example,{TAKES_MAIL}",
    "--dns-rr=ten.example,15,000A00",
    "--dns-rr=beside.example,15,000000",
    "--mx-host=beside.example,b.example,10",
    "--dns-rr=under.example,15,000000",
    "--mx-host=under.example,takes.example,10",
    "--mx-host=first.example,b.example,10",
    "--mx-host=first.example,nothing.example,20",
    "--mx-host=equal.example,b.example,10",
    "--mx-host=equal.example,nothing.example,10",
    "--mx-host=last.example,b.example,10",
    "--mx-host=last.example,takes.example,20",
    f"--host-record=a.example,{SAYS_521}",
    f"--host-record=b.example,{SAYS_521_AT_MAIL}",
    f"--host-record=six.example,{SAYS_521},::1",
    f"--host-record=takes.example,{TAKES_MAIL}",
    f"--host-record=later.example,{NOT_NOW}",
    f"--host-record=silent.example,{SILENT}",
    f"--host-record=broken.example,{BROKEN}",
    f"--host-record=nothing.example,{NOTHING}",
    "--mx-host=two.example,b.example,20",
    "--mx-host=two.example,a.example,10",
    "--mx-host=same.example,b.example,10",
    "--mx-host=same.example,b.example,20",
    f"--host-record=same.example,{TAKES_MAIL}",
    "--mx-host=lost.example,gone.example,10",
    "--mx-host=self.example,self.example,10",
    f"--host-record=self.example,{SAYS_521_AT_MAIL}",
    "--dns-rr=odd.example,15,000A03610A62076578616D706C6500",  # an MX with a line feed in its name
    "--txt-record=empty.example,nothing",
    "--local=/example/",  # names that are not here do not exist; those of other domains are REFUSED
)


class World(NamedTuple):
    """A DNS and servers, and what to say to `nullsmtpd check` to see them."""

    resolver: tuple[str, int]
    port: int

    @property
    def arguments(self) -> list[str]:
        return ["--resolver", f"{self.resolver[0]}:{self.resolver[1]}", "--port", str(self.port)]


def common_port() -> int:
    """Return a port that is free at all addresses, and that no client is given by the kernel."""
    while True:
        port = random.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port


@contextlib.contextmanager
def naming(log_path: Path) -> Iterator[tuple[str, int]]:
    """Run dnsmasq with the names above on a port that is free, and give its address."""
    port = common_port()
    quiet = ("--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--no-hosts", "--no-resolv", "--user=")
    where = ("--bind-interfaces", "--listen-address=127.0.0.1", f"--port={port}", "--log-facility=-")
    with log_path.open("wb") as log:
        process = subprocess.Popen(["dnsmasq", *quiet, *where, *ZONE], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(dns.exception.Timeout, OSError):
                dns.query.udp(dns.message.make_query("a.example", "A"), "127.0.0.1", timeout=0.1, port=port)
                break
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"no DNS: {log_path.read_text()}")
        yield "127.0.0.1", port
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    require_tools("dnsmasq")
    require(sys.platform == "linux", "Linux, where all of 127/8 is on the loopback interface")
    require(socket.has_dualstack_ipv6(), "IPv6")
    port = common_port()
    directory = tmp_path_factory.mktemp("domain")
    with starting(directory) as start, naming(directory / "dnsmasq.log") as resolver, contextlib.ExitStack() as stack:
        start("--listen", f"[::1]:{port}", listen=f"{SAYS_521}:{port}", count=2)
        start("--mode", "mail", listen=f"{SAYS_521_AT_MAIL}:{port}")
        for address, deeds in DEEDS.items():
            stack.callback(Server(deeds, (address, port)).close)
        yield World(resolver, port)


@pytest.mark.parametrize(
    ("domain", "status", "verdict", "words"),
    [
        ("null.example", 0, "null-mx", "immediate bounce: senders give up at once, without connecting"),
        ("bare.example", 0, "null-mx", "immediate bounce"),
        ("closed.example", 0, "null-mx", "immediate bounce"),
        ("open.example", 1, "null-mx-open-port", "an open port that says 250 to MAIL, and hands its mail over"),
        ("ten.example", 1, "faulty-null-mx", "make it one MX, of preference 0"),
        ("a.example", 1, "refuses-at-greeting", r"Postfix \(5 days\), OpenSMTPD \(4\) and qmail \(7\) try again"),
        ("six.example", 1, "refuses-at-greeting", "immediate bounce from Exim, Sendmail"),
        ("b.example", 0, "refuses-at-mail", "every sender gives up at once, with the text"),
        ("same.example", 0, "refuses-at-mail", "every sender gives up at once"),
        ("self.example", 0, "refuses-at-mail", "every sender gives up at once"),
        ("beside.example", 1, "faulty-null-mx", "make it one MX, of preference 0"),
        ("under.example", 1, "takes-mail", "an open port that says 250 to MAIL"),
        ("takes.example", 1, "takes-mail", "an open port that says 250 to MAIL: senders hand their mail over there"),
        ("first.example", 0, "refuses-at-mail", "every sender gives up at once"),
        ("equal.example", 1, "mixed", "the addresses answer differently"),
        ("last.example", 1, "takes-mail", "an open port that says 250 to MAIL"),
        ("later.example", 1, "not-now", "every sender tries again for days"),
        ("silent.example", 1, "silent", "accepts connections and says nothing: every sender tries again for days"),
        ("broken.example", 1, "broken", "every sender tries again for days"),
        ("nothing.example", 1, "no-listener", r"nothing listens: every sender tries again for days \(Exim and"),
        ("two.example", 1, "mixed", "the addresses answer differently"),
        ("lost.example", 1, "no-address", "senders find no address"),
        ("odd.example", 1, "no-address", "senders find no address"),
        ("empty.example", 1, "no-address", "senders find no address"),
        ("absent.example", 1, "no-domain", "there is no such domain"),
        ("refused.test", 1, "dns-fails", "DNS does not answer: every sender tries again for days"),
    ],
)
def test_each_domain_gets_its_verdict(world: World, domain: str, status: int, verdict: str, words: str) -> None:
    """What a sender experiences, in words and by name; status 0 where its author is told at once."""
    arguments = ["--domain", domain, "--timeout", "1" if domain == "silent.example" else "5", *world.arguments]
    checked = run_cli("check", *arguments)
    assert checked.stderr == ""
    assert checked.returncode == status
    assert re.match(rf"{domain} {'bad' if status else 'good'}: .*{words}", checked.stdout.splitlines()[-1])
    assert all(line.isascii() and line.isprintable() for line in checked.stdout.split("\n"))
    found = json.loads(run_cli("check", "--json", *arguments).stdout)
    assert (found["good"], found["domain"]["verdict"], found["hosts"]) == (not status, verdict, [])


def test_the_report_shows_the_mx_set_and_what_each_address_answers(world: World) -> None:
    """The domain's own addresses and those of each MX host, each with its own line; then the verdict."""
    lines = run_cli("check", "--domain", "two.example", *world.arguments).stdout.splitlines()
    assert re.fullmatch(r"two\.example MX: 10 a\.example, 20 b\.example \(TTL \d+ s\): no null MX", lines[0])
    assert lines[1] == "two.example: no address"
    assert lines[2].startswith(
        f"a.example {SAYS_521}:{world.port} good: '521 Host does not accept mail\\r\\n', then FIN"
    )
    assert lines[3].startswith(f"b.example {SAYS_521_AT_MAIL}:{world.port} good: '220 ")
    assert len(lines) == 5
    six = run_cli("check", "--domain", "six.example", *world.arguments).stdout
    assert "six.example MX: none, so mail goes to its own addresses (RFC 5321 section 5.1)\n" in six
    assert f"six.example [::1]:{world.port} good: " in six
    assert f"six.example {SAYS_521}:{world.port} good: " in six
    for domain, words in (
        ("null", ": 0 . (TTL 0 s): a null MX\n"),
        ("ten", ": a faulty null MX: it must be alone, and of preference 0\n"),
        ("beside", ": a faulty null MX: it must be alone, and of preference 0\n"),
    ):
        assert words in run_cli("check", "--domain", f"{domain}.example", *world.arguments).stdout
    closed = run_cli("check", "--domain", "closed.example", *world.arguments).stdout
    assert f"closed.example {NOTHING}:{world.port} bad: connection refused" in closed


def test_names_are_shown_as_dns_has_them(world: World) -> None:
    """A-labels for what people write, and escapes for what nobody should."""
    idn = run_cli("check", "--domain", "B\u00fccher.example", *world.arguments).stdout
    assert idn.startswith("xn--bcher-kva.example MX: no such domain\n")
    assert "MX: 10 a\\010b.example " in run_cli("check", "--domain", "odd.example", *world.arguments).stdout


def test_json_of_a_domain_holds_records_addresses_and_answers(world: World) -> None:
    """One host for each name, the domain's own first; preferences, TTL, and what each address says to a sender."""
    found = json.loads(run_cli("check", "--json", "--domain", "Same.Example.", *world.arguments).stdout)["domain"]
    own, mx_host = found.pop("hosts")
    assert found.pop("words")
    assert found == {
        "name": "same.example",
        "good": True,
        "verdict": "refuses-at-mail",
        "error": None,
        "exists": True,
        "mx": [{"preference": 10, "target": "b.example"}, {"preference": 20, "target": "b.example"}],
        "ttl": 0,
        "null_mx": False,
        "left_out": 0,
    }
    assert (own["name"], own["preferences"]) == ("same.example", [])
    assert [(seen["address"], seen["answer"]) for seen in own["addresses"]] == [(TAKES_MAIL, "takes_mail")]
    assert (mx_host["name"], mx_host["preferences"]) == ("b.example", [10, 20])
    (seen,) = mx_host["addresses"]
    assert (seen["address"], seen["answer"], seen["ending"]) == (SAYS_521_AT_MAIL, "refuses_at_mail", "FIN")
    assert [reply["code"] for reply in seen["replies"]] == [220, 250, 521, 221]


def test_a_host_beside_the_domain_is_held_to_its_own(world: World) -> None:
    """`--domain NAME HOST` is good if both are: the port of a domain with a null MX may be shut otherwise."""
    good = run_cli("check", "--domain", "closed.example", SAYS_521, *world.arguments)
    assert good.returncode == 0
    assert good.stdout.startswith(f"{SAYS_521}:{world.port} good: ")
    bad = run_cli("check", "--domain", "closed.example", NOTHING, *world.arguments)
    assert bad.returncode == 1
    assert bad.stdout.endswith("tries for 4 days\n")


def test_dns_that_is_silent_is_said_and_not_waited_for(world: World) -> None:
    """A name server that never answers: exit status 1 after --timeout."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        checked = run_cli("check", "--domain", "null.example", "--resolver", where, "--timeout", "0.2")
    assert checked.returncode == 1
    mx, addresses, verdict = checked.stdout.splitlines()
    assert mx == "null.example MX: DNS does not tell: timed out"
    assert addresses == "null.example: DNS does not tell its addresses: timed out"
    assert verdict.startswith("null.example bad: DNS does not answer")


def test_addresses_that_dns_does_not_tell_are_said_beside_those_that_it_does() -> None:
    """AAAA fails and A has an address: it is asked, and what it answers is not the whole story."""
    with name_server() as dns_server, socket.create_server(("127.0.0.1", 0)) as taken:
        dns_server.addresses["plain.example"] = []
        dns_server.addresses["mail.plain.example"] = dns_server.addresses["mail2.plain.example"] = ["127.0.0.1"]
        dns_server.faults["mail.plain.example AAAA"] = "servfail"
        port = taken.getsockname()[1]
        taken.close()
        checked = run_cli("check", "--domain", "plain.example", "--resolver", dns_server.flag, "--port", str(port))
    lines = checked.stdout.splitlines()
    assert lines[2].startswith(f"mail.plain.example 127.0.0.1:{port} bad: connection refused")
    assert lines[3] == "mail.plain.example: DNS does not tell all of its addresses: SERVFAIL"
    assert lines[-1].startswith("plain.example bad: DNS does not tell all of the addresses")


@pytest.mark.parametrize("is_null_mx", [False, True])
def test_a_domain_of_very_many_addresses_is_asked_a_part_of_them(
    monkeypatch: pytest.MonkeyPatch, *, is_null_mx: bool
) -> None:
    """Names and addresses are bounded; the report says how many are left out, and not that these have no address."""
    monkeypatch.setattr("nullsmtpd.check.domain.MAX_ADDRESSES", 3)
    with name_server() as dns_server, contextlib.closing(Server([LINE, FIN])) as server:
        dns_server.mx["many.example"] = ["0 ."] if is_null_mx else [f"{n} mx{n}.example." for n in range(1, 5)]
        own = [f"127.0.0.{n}" for n in range(1, 6)] if is_null_mx else ["127.0.0.1"]
        dns_server.addresses |= {"many.example": own, **{f"mx{n}.example": ["127.0.0.1"] for n in range(1, 5)}}
        dns_server.addresses["mx1.example"] = ["127.0.0.1", "127.0.0.9"]
        report = asyncio.run(nullsmtpd.check_domain("many.example", port=server.port, resolver=dns_server.address))
    assert len(report.hosts) == (1 if is_null_mx else 3)
    assert sum(len(host.probes) for host in report.hosts) == 3
    assert report.left_out == (2 if is_null_mx else 2 + 1)
    assert (report.is_good, report.verdict.name) == (False, "left-out")
    asked, left_out, verdict = domain_lines(report)[-3:]
    assert re.match(r"\w+\.example 127\.0\.0\.\d+:", asked)
    assert left_out == f"many.example: {report.left_out} more names and addresses are not asked: too many"
    assert verdict.startswith("many.example bad: too many addresses to ask them all")


def test_without_dnspython_one_line_says_what_to_install(world: World) -> None:
    """The extra `relay` is missing: exit status 2."""
    program = (
        "import sys; sys.modules['dns'] = None; from nullsmtpd.cli.check_command import run; sys.exit(run({!r}, {{}}))"
    )
    command = [sys.executable, "-c", program.format(["--domain", "null.example", *world.arguments])]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert re.fullmatch(
        r"nullsmtpd check: the package dns\S* is missing: pip install 'nullsmtpd-521\[relay\]'\n", ran.stderr
    )


def test_check_domain_tells_a_program_the_same(world: World) -> None:
    """The library's function: a report with the answer of DNS, the hosts, and the verdict."""
    report = asyncio.run(nullsmtpd.check_domain("two.example", port=world.port, resolver=world.resolver))
    assert isinstance(report, nullsmtpd.DomainReport)
    assert report.mx is not None
    assert [host.name for host in report.hosts] == ["two.example", "a.example", "b.example"]
    assert all(isinstance(seen, nullsmtpd.Probe) for host in report.hosts for seen in host.probes)
    assert (report.is_good, report.verdict.name) == (False, "mixed")
    with pytest.raises(nullsmtpd.DomainError):
        asyncio.run(nullsmtpd.check_domain("no domain"))


@pytest.mark.parametrize(
    ("codes", "ending", "answer"),
    [
        ("521", FIN_SEEN, Answer.REFUSES_AT_GREETING),
        ("521 221", FIN_SEEN, Answer.REFUSES_AT_GREETING),
        ("554", LEFT, Answer.REFUSES_AT_GREETING),
        ("450", LEFT, Answer.NOT_NOW),
        ("220", FIN_SEEN, Answer.BROKEN),
        ("220", SILENCE, Answer.BROKEN),
        ("354", LEFT, Answer.BROKEN),
        ("220 521", LEFT, Answer.BROKEN),  # a sender defers this one
        ("220 502 250 250", LEFT, Answer.TAKES_MAIL),
        ("220 502 250 521 221", FIN_SEEN, Answer.REFUSES_AT_MAIL),
        ("220 502 502", LEFT, Answer.BROKEN),
        ("220 502 421", LEFT, Answer.NOT_NOW),
        ("220 451", LEFT, Answer.NOT_NOW),
        ("220 250", RESET, Answer.BROKEN),
        ("220 250 521 221", FIN_SEEN, Answer.REFUSES_AT_MAIL),
        ("220 250 530", LEFT, Answer.REFUSES_THIS_SENDER),
        ("220 250 550", LEFT, Answer.REFUSES_THIS_SENDER),
        ("220 250 452", LEFT, Answer.NOT_NOW),
        ("220 250 250", LEFT, Answer.TAKES_MAIL),
        ("", RESET, Answer.BROKEN),
        ("", FIN_SEEN, Answer.BROKEN),
        ("", SILENCE, Answer.SILENT),
        ("", REFUSED, Answer.NO_LISTENER),
        ("", UNREACHABLE, Answer.UNREACHABLE),
        ("", NO_FAMILY, Answer.UNKNOWN),
    ],
)
def test_a_sender_goes_by_the_first_reply_that_is_not_2xx(codes: str, ending: str, answer: Answer) -> None:
    """RFC 5321 §4.3.2: 5xx is for good, 4xx for now; what is no reply at all is for now too."""
    seen = Probe("192.0.2.1", 25, 5.0)
    seen.replies = [Reply(code, "") for code in codes.split()]
    seen.received, seen.ending = codes.encode(), ending
    assert answer_of(seen) is answer


@pytest.mark.parametrize(
    ("groups", "name", "words"),
    [
        ([{Answer.UNKNOWN}], "unknown", "no address can be asked from here"),
        ([{Answer.UNKNOWN, Answer.NO_LISTENER}], "unknown-in-part", "not all .* the others: nothing listens"),
        ([{Answer.UNKNOWN, Answer.REFUSES_AT_MAIL}], "unknown-in-part", "not all .* the others: immediate bounce"),
        ([{Answer.REFUSES_AT_MAIL}, {Answer.UNKNOWN}], "unknown-in-part", "those may take mail"),
        ([{Answer.UNKNOWN}, {Answer.TAKES_MAIL}], "takes-mail", "250 to MAIL"),
    ],
)
def test_an_address_that_cannot_be_asked_from_here_is_never_good(
    groups: list[set[Answer]], name: str, words: str
) -> None:
    """A checking host without IPv6 says that it does not know what the IPv6 addresses answer."""
    verdict = verdict_on(NO_MX, set(), groups)
    assert (verdict.name, verdict.is_good) == (name, False)
    assert re.search(words, verdict.words)


def test_what_is_less_preferred_than_a_refusal_at_mail_still_has_to_be_known() -> None:
    """No sender that bounces goes on to it, but those that try all of them may find that it takes mail."""
    refusing, later = {Answer.REFUSES_AT_MAIL}, {Answer.NOT_NOW, Answer.SILENT}
    assert verdict_on(NO_MX, set(), [set(), refusing, later]).name == "refuses-at-mail"
    assert verdict_on(NO_MX, set(), [later, refusing]).name == "mixed"
    assert verdict_on(NO_MX, set(), [refusing, later], is_known=False).name == "dns-fails-in-part"


@pytest.mark.parametrize("answer", Answer)
def test_every_answer_has_a_verdict_and_one_alone_is_good(answer: Answer) -> None:
    """Without a null MX, only a refusal at MAIL is told to every author at once."""
    verdict = verdict_on(NO_MX, set(), [{answer}])
    assert verdict.is_good == (answer is Answer.REFUSES_AT_MAIL)
    assert verdict.words == answer.value


def test_going_by_the_greeting_takes_leave(world: World) -> None:
    """In mode `any` a server that means its 220 hears EHLO, MAIL and QUIT, and no recipient."""
    assert LINE in nullsmtpd.probe(SAYS_521, world.port, mode=ANY).received
    with contextlib.closing(Server(DEEDS[TAKES_MAIL])) as server:
        seen = nullsmtpd.probe("127.0.0.1", server.port, mode=ANY)
    assert seen.fault.startswith("the reply to MAIL is 250, not 521: ")
    assert server.heard[:3] == [b"EHLO [127.0.0.1]\r\n", b"MAIL FROM:<>\r\n", b"QUIT\r\n"]


@pytest.mark.parametrize("mode", ["mail", ANY])
def test_a_server_without_ehlo_is_greeted_with_helo_once(mode: str) -> None:
    """RFC 5321 §3.2, as senders do; a mode that was asked for has its EHLO."""
    deeds = (b"220 a\r\n", LISTEN, b"502 what\r\n", LISTEN, b"250 a\r\n", LISTEN, b"250 OK\r\n", LISTEN, FIN)
    with contextlib.closing(Server(deeds)) as server:
        seen = nullsmtpd.probe("127.0.0.1", server.port, mode=mode)
    if mode == ANY:
        assert answer_of(seen) is Answer.TAKES_MAIL
        assert server.heard[:3] == [b"EHLO [127.0.0.1]\r\n", b"HELO [127.0.0.1]\r\n", b"MAIL FROM:<>\r\n"]
    else:
        assert seen.fault.startswith("the reply to EHLO is 502, not 250")
