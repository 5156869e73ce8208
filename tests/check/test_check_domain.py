"""`nullsmtpd check --domain`: real name servers with the zones below, and a server of each kind behind their names.

All of it is in a network namespace, where addresses of the public Internet are those of its loopback interface.
"""

import asyncio
import contextlib
import functools
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import dns.zone
import pytest
from hosts import Host, open_host
from hypothesis import given, settings
from hypothesis import strategies as st
from misbehaving import FIN, HOLD, LISTEN, Server
from name_server import name_server
from support import LINE, PATIENCE, require_root, require_tools, run_cli, starting
from zones import RESOLVER, resolving

import nullsmtpd
from nullsmtpd.check.dialogue import ANY
from nullsmtpd.check.domain import not_public
from nullsmtpd.check.verdicts import VERDICTS, behaviour_of

# Where each kind of server is. Nothing that is sent to these addresses leaves the namespace.
GREETS_521, REFUSES_MAIL, TAKES_MAIL, NOT_NOW, SILENT, BROKEN, NOTHING, REFUSES_EHLO = (
    f"45.0.0.{n}" for n in range(2, 10)
)
UNREACHABLE, NO_ROUTE = "45.0.1.1", "45.0.2.1"
GREETS_521_6, PRIVATE = "2a00::2", "10.0.0.2"

DEEDS: dict[str, Sequence[bytes | str]] = {
    TAKES_MAIL: [b"220 a\r\n", LISTEN, b"250-a\r\n250 HELP\r\n", LISTEN, b"250 OK\r\n", LISTEN, b"221 bye\r\n", FIN],
    NOT_NOW: [b"421 later\r\n", FIN],
    SILENT: [HOLD],
    BROKEN: [b"SSH-2.0-x\r\n", HOLD],
    REFUSES_EHLO: [b"220 a\r\n", LISTEN, LINE, LISTEN, LINE, LISTEN, b"221 bye\r\n", FIN],
}

_SOA = "$TTL 300\n@ IN SOA ns. hostmaster. 1 3600 600 86400 60\n@ IN NS ns.\n"

ROOT = f"""\
{_SOA}ns IN A 127.0.0.1
signed.example. IN NS ns.
bogus.example. IN NS ns.
$ORIGIN example.

; servers
b           A     {REFUSES_MAIL}
takes       A     {TAKES_MAIL}
nothing     A     {NOTHING}
nobody      AAAA  {GREETS_521_6}
alias-of-b  CNAME b

; null MX, and what is nearly one
null        MX    0 .
null        A     {GREETS_521}
closed      MX    0 .
closed      A     {NOTHING}
home        MX    0 .
home        A     {PRIVATE}
*.home      TXT   "v=spf1 -all"
open        MX    0 .
open        A     {TAKES_MAIL}
ten         MX    10 .
beside      MX    0 .
beside      MX    10 b
under       MX    0 .
under       MX    10 takes
zero        MX    0 0.
word        MX    0 null.
$ORIGIN undotted.example.
@           MX    0 null
$ORIGIN example.
literal     MX    10 {GREETS_521}.
ttl0      0 MX    0 .
xn--bcher-kva MX  0 .
cname       CNAME null
dname       DNAME tree
host.tree   MX    0 .
a.b.ent     A     {NOTHING}

; MX sets
a           A     {GREETS_521}
six         A     {GREETS_521}
six         AAAA  {GREETS_521_6}
first       MX    10 b
first       MX    20 nothing
equal       MX    10 b
equal       MX    10 nothing
last        MX    10 b
last        MX    20 takes
later       A     {NOT_NOW}
silent      A     {SILENT}
broken      A     {BROKEN}
ehlo        A     {REFUSES_EHLO}
its-own     MX    10 its-own
its-own     A     {TAKES_MAIL}
its-last    MX    20 its-last
its-last    MX    10 b
its-last    A     {NOTHING}
two         MX    20 b
two         MX    10 a
www.two     CNAME two
same        MX    10 b
same        MX    20 B
same        A     {TAKES_MAIL}
lost        MX    10 gone
mxalias     MX    10 alias-of-b
odd         MX    10 a\\010b
empty       TXT   "nothing"
loop        MX    10 localhost.
private     MX    10 home
half        MX    10 b
half        MX    20 home
filtered    A     {UNREACHABLE}
inside      A     {PRIVATE}
noroute     A     {NO_ROUTE}

; what else a domain publishes
$ORIGIN good.example.
@           MX    0 .
@           TXT   "v=spf1 " "-all"
@           TXT   "other"
_dmarc      TXT   "v=DMARC1; p=reject"
www         MX    0 .
www         A     {GREETS_521}
sub         MX    0 .
sub         TXT   "v=spf1 -all"
*           MX    0 .
$ORIGIN bad.example.
@           MX    0 .
@           TXT   "v=spf1 -all"
@           TXT   "v=spf1 mx -all"
_dmarc      TXT   "v=DMARC1; p=reject; sp=none; rua=mailto:\\"x\\"@bad.example"
_mta-sts    TXT   "v=STSv1; id=1|2;"
_smtp._tls  TXT   "v=TLSRPTv1; rua=mailto:x@bad.example"
_25._tcp    TLSA  3 1 1 0123456789012345678901234567890123456789012345678901234567890123
www         MX    10 takes.example.
*           MX    10 takes.example.
$ORIGIN wild.example.
@           MX    0 .
@           TXT   "v=spf1 redirect=good.example"
_dmarc      TXT   "v=DMARC1; p=quarantine; pct=50; rua=mailto:x@wild.example"
*           A     {NOTHING}
$ORIGIN alias.example.
@           MX    0 .
@           TXT   "v=spf1 -all"
www         CNAME null.example.
*           CNAME nothing.example.
$ORIGIN sends.example.
@           MX    0 .
@           TXT   "v=spf1 a -all"
$ORIGIN cron.example.
@           A     {REFUSES_MAIL}
@           TXT   "v=spf1 a ~all"
www         CNAME cron.example.
*           CNAME alias-of-cron.example.
$ORIGIN example.
alias-of-cron CNAME cron
$ORIGIN syntax.example.
@           MX    0 .
@           TXT   "v=spf1 ip4:1.2.3 -all"
_dmarc      TXT   "v=DMARC1; p=reject"
_dmarc      TXT   "v=DMARC1; p=none"
"""

SIGNED = f'{_SOA}@ IN MX 0 .\n@ IN TXT "v=spf1 -all"\n'

MANY = _SOA + "".join(f"@ MX {n} mx{n}\n" for n in range(300)) + "".join(f"mx{n} A {NOTHING}\n" for n in range(300))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Return a network namespace with the zones and servers above."""
    require_root()
    require_tools("ip", "nsenter", "unshare")
    directory = tmp_path_factory.mktemp("domain")
    zones = {".": ROOT, "many.example.": MANY, "signed.example.": SIGNED, "bogus.example.": SIGNED}
    signed = {"signed.example.": ("", ""), "bogus.example.": ("MX\t0 .", "MX\t5 .")}
    with open_host() as host, contextlib.ExitStack() as stack:
        for n in range(2, 10):
            host.run("ip", "address", "add", f"45.0.0.{n}", "dev", "lo")
        host.run("ip", "address", "add", PRIVATE, "dev", "lo")
        host.run("ip", "address", "add", GREETS_521_6, "dev", "lo")
        host.run("ip", "route", "add", "unreachable", UNREACHABLE)
        stack.enter_context(resolving(host, directory, zones, signed=signed, python=sys.executable))
        start = stack.enter_context(starting(directory))
        start("--listen", f"[{GREETS_521_6}]:25", listen=f"{GREETS_521}:25", count=2, prefix=host.prefix)
        start("--mode", "mail", listen=f"{REFUSES_MAIL}:25", prefix=host.prefix)
        start(listen=f"{PRIVATE}:25", prefix=host.prefix)
        command = [*host.prefix, sys.executable, str(Path(__file__).parents[1] / "misbehaving.py"), repr(DEEDS)]
        servers = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        stack.enter_context(servers)
        assert servers.stdout
        assert servers.stdout.readline()
        yield host


@functools.cache
def check(host: Host, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in the namespace, once for all tests that look at the same domain."""
    return subprocess.run(
        [*host.prefix, sys.executable, "-m", "nullsmtpd", "check", *arguments, "--resolver", RESOLVER],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


FOR_DAYS = r"every sender tries again for days \(Postfix 5, Exim 4, Sendmail 5, OpenSMTPD 4, dma 5 and qmail 7\)"


@pytest.mark.parametrize(
    ("domain", "status", "verdict", "words"),
    [
        ("null.example", 0, "null-mx", r"only OpenSMTPD before 7.5 \(4 days\) and dma \(5 days\) try again"),
        ("closed.example", 0, "null-mx", "immediate bounce"),
        ("home.example", 0, "null-mx", "immediate bounce"),
        ("ttl0.example", 0, "null-mx", "immediate bounce"),
        ("B\u00fccher.example", 0, "null-mx", "immediate bounce"),
        ("cname.example", 0, "null-mx", "immediate bounce"),
        ("host.dname.example", 0, "null-mx", "immediate bounce"),
        ("signed.example", 0, "null-mx", "immediate bounce"),
        ("open.example", 1, "null-mx-open-port", "an open port that replies 250 to MAIL, and deliver their mail"),
        ("ten.example", 1, "faulty-null-mx", "an invalid null MX"),
        ("beside.example", 1, "faulty-null-mx", "an invalid null MX"),
        ("under.example", 1, "takes-mail", "an open port that replies 250 to MAIL"),
        ("zero.example", 1, "no-address", "senders find no address"),
        ("word.example", 1, "no-address", "senders find no address"),
        ("literal.example", 1, "no-address", "senders find no address"),
        (
            *("a.example", 1, "refuses-at-greeting"),
            r"bounce from Exim, Sendmail and dma; Postfix \(5 days\), OpenSMTPD \(4 days\) and qmail \(7 days\) try",
        ),
        ("six.example", 1, "refuses-at-greeting", "immediate bounce from Exim, Sendmail and dma"),
        (
            *("ehlo.example", 1, "refuses-at-ehlo"),
            r"bounce from Postfix, Exim, Sendmail and dma; OpenSMTPD \(4 days\) and qmail \(7 days\) try again",
        ),
        ("b.example", 0, "refuses-at-mail", "with the text of the reply; only those set to require TLS .Postfix, Exim"),
        ("same.example", 0, "refuses-at-mail", "every sender gives up at once"),
        ("takes.example", 1, "takes-mail", "an open port that replies 250 to MAIL: senders deliver their mail there"),
        ("first.example", 0, "refuses-at-mail", "every sender gives up at once"),
        ("equal.example", 1, "mixed", "the addresses differ"),
        ("last.example", 1, "takes-mail", "an open port that replies 250 to MAIL"),
        ("its-own.example", 1, "takes-mail", "an open port that replies 250 to MAIL"),
        ("its-last.example", 0, "refuses-at-mail", "every sender gives up at once"),
        ("later.example", 1, "not-now", FOR_DAYS),
        ("silent.example", 1, "silent", f"accepts connections and sends nothing: {FOR_DAYS}"),
        ("broken.example", 1, "broken", FOR_DAYS),
        ("nothing.example", 1, "no-listener", f"nothing listens: {FOR_DAYS}"),
        ("filtered.example", 1, "unreachable", "if no host does, this network may filter outgoing port 25"),
        ("noroute.example", 1, "unknown", "no address can be reached from this host"),
        ("two.example", 1, "mixed", "the addresses differ"),
        ("lost.example", 1, "no-address", "senders find no address"),
        ("odd.example", 1, "no-address", "senders find no address"),
        ("empty.example", 1, "no-address", "senders find no address"),
        ("ent.example", 1, "no-address", "senders find no address"),
        ("b.ent.example", 1, "no-address", "senders find no address"),
        ("absent.example", 1, "no-domain", "there is no such domain"),
        ("bogus.example", 1, "dns-fails", f"DNS does not answer: {FOR_DAYS}"),
        ("loop.example", 1, "not-public", "no address that can be reached on the Internet"),
        ("private.example", 1, "not-public", "no address that can be reached on the Internet"),
        ("half.example", 1, "refuses-at-mail", "every sender gives up at once"),
        ("inside.example", 1, "not-public", "no address that can be reached on the Internet"),
        ("many.example", 1, "left-out", "too many addresses"),
    ],
)
def test_each_domain_gets_its_verdict(host: Host, domain: str, status: int, verdict: str, words: str) -> None:
    """What a sender experiences, in words and by name; status 0 where its author is told at once."""
    arguments = ["--domain", domain, "--timeout", "1" if domain == "silent.example" else "5"]
    checked = check(host, *arguments)
    assert checked.stderr == ""
    assert checked.returncode == status
    lines = checked.stdout.splitlines()
    assert re.match(rf"\S+ {'bad' if status else 'good'}: .*{words}", lines[-1]), lines[-1]
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert "|" not in checked.stdout
    found = json.loads(check(host, "--json", *arguments).stdout)
    assert (found["good"], found["domains"][0]["verdict"], found["hosts"]) == (not status, verdict, [])


def findings_of(host: Host, *arguments: str) -> dict[str, tuple[str, str, str]]:
    """Return the findings on one domain: status, words and what to publish, by name and subject."""
    (report,) = json.loads(check(host, "--json", "--domain", *arguments).stdout)["domains"]
    return {f"{f['name']} {f['subject']}": (f["status"], f["words"], f["publish"]) for f in report["findings"]}


@pytest.mark.parametrize(
    ("domain", "finding", "words", "publish"),
    [
        ("good", "good.example MX ok", "a null MX", ""),
        ("good", "good.example SPF ok", "no host may send mail as this domain", ""),
        ("good", "_dmarc.good.example DMARC ok", "receivers reject mail", ""),
        ("good", "www.good.example MX ok", "mail to this name is treated as", ""),
        ("good", "*.good.example MX ok", "mail to this name is treated as", ""),
        ("sub.good", "_dmarc.sub.good.example DMARC ok", "receivers reject mail", ""),
        ("null", "null.example SPF advice", "use --sends", 'null.example. IN TXT "v=spf1 -all"'),
        ("null", "_dmarc.null.example DMARC advice", "", '_dmarc.null.example. IN TXT "v=DMARC1; p=reject"'),
        ("six", "six.example MX advice", "senders connect to its own addresses", "six.example. IN MX 0 ."),
        ("two", "two.example MX advice", "senders connect to its MX hosts", "two.example. IN MX 0 ."),
        ("ten", "ten.example MX wrong", "it must have preference 0", "ten.example. IN MX 0 ."),
        ("beside", "beside.example MX wrong", "it must be the only MX", "beside.example. IN MX 0 ."),
        ("zero", "zero.example MX wrong", "not a null MX, whose target is a single dot", "zero.example. IN MX 0 ."),
        ("word", "word.example MX wrong", "a single dot instead of null.", "word.example. IN MX 0 ."),
        ("undotted", "undotted.example MX wrong", "instead of null.undotted.example.", "undotted.example. IN MX 0 ."),
        ("literal", "literal.example MX wrong", "45.0.0.2 is an IP address", "literal.example. IN MX 0 ."),
        ("lost", "gone.example MX host wrong", "an MX must have one", ""),
        ("mxalias", "alias-of-b.example MX host wrong", "an MX must be no alias", ""),
        ("loop", "localhost MX host wrong", "no sender on the Internet can reach it: loopback", ""),
        ("half", "home.example MX host wrong", "no sender on the Internet can reach it: private", ""),
        ("inside", "inside.example address wrong", "no sender on the Internet can reach it: private", ""),
        ("bogus", "bogus.example MX unknown", "DNS does not answer: SERVFAIL", ""),
        ("absent", "absent.example MX wrong", "no such domain", ""),
        ("cname", "cname.example SPF advice", "", 'null.example. IN TXT "v=spf1 -all"'),
        ("host.dname", "host.dname.example SPF advice", "", 'host.tree.example. IN TXT "v=spf1 -all"'),
        ("bad", "bad.example SPF wrong", "several records .*use --sends", 'bad.example. IN TXT "v=spf1 -all"'),
        ("bad", "_mta-sts.bad.example MTA-STS wrong", "remove it", ""),
        ("bad", "_smtp._tls.bad.example TLSRPT wrong", "remove it", ""),
        ("bad", "_25._tcp.bad.example TLSA wrong", "remove it", ""),
        ("bad", "www.bad.example MX wrong", "mail to this name goes there", "www.bad.example. IN MX 0 ."),
        ("bad", "*.bad.example MX wrong", "mail to this name goes there", "*.bad.example. IN MX 0 ."),
        ("wild", "wild.example SPF ok", "no host may send mail", ""),
        (
            *("wild", "_dmarc.wild.example DMARC advice", "receivers should reject all mail"),
            '_dmarc.wild.example. IN TXT "v=DMARC1; p=reject; rua=mailto:x@wild.example"',
        ),
        ("wild", "www.wild.example MX advice", "goes to its address", "www.wild.example. IN MX 0 ."),
        ("wild", "*.wild.example MX advice", "goes to its address", "*.wild.example. IN MX 0 ."),
        ("two", "www.two.example MX ok", "mail to this name is treated as", ""),
        ("alias", "www.alias.example MX ok", "mail to this name is treated as", ""),
        ("alias", "*.alias.example MX advice", "goes to its address", "nothing.example. IN MX 0 ."),
        ("alias", "_dmarc.alias.example DMARC advice", "", '_dmarc.alias.example. IN TXT "v=DMARC1; p=reject"'),
        ("sends", "sends.example MX wrong", "550 5.7.27 .*remove it and run nullsmtpd in mode mail", ""),
        ("sends", "sends.example SPF ok", "the domain sends mail", ""),
        ("sends", "_dmarc.sends.example DMARC ok", "its owner's choice", ""),
        ("cron", "cron.example MX ok", "nullsmtpd in mode mail", ""),
        ("cron", "www.cron.example MX ok", "mail to this name is treated as", ""),
        ("cron", "*.cron.example MX ok", "mail to this name is treated as", ""),
        ("alias-of-cron", "alias-of-cron.example MX ok", "nullsmtpd in mode mail", ""),
        (
            "syntax",
            "syntax.example SPF wrong",
            "'ip4:1.2.3' is no valid term .*use --sends",
            'syntax.example. IN TXT "v=spf1 -all"',
        ),
        (
            *("syntax", "_dmarc.syntax.example DMARC wrong", "several"),
            '_dmarc.syntax.example. IN TXT "v=DMARC1; p=reject"',
        ),
        ("null --sends", "null.example MX wrong", "550 5.7.27", ""),
        ("null --sends", "null.example SPF advice", "", 'null.example. IN TXT "v=spf1 a -all"'),
        ("good --sends", "good.example SPF wrong", "but it sends", 'good.example. IN TXT "v=spf1 a -all"'),
        ("b --sends", "b.example MX ok", "nullsmtpd in mode mail", ""),
    ],
)
def test_each_record_is_judged_and_its_correction_is_a_line_of_a_zone_file(
    host: Host, domain: str, finding: str, words: str, publish: str
) -> None:
    """What is there, whether that is right, and what to publish instead."""
    domain, *flags = domain.split()
    name, _, status = finding.rpartition(" ")
    found = findings_of(host, f"{domain}.example", *flags)
    assert name in found, found
    assert (found[name][0], found[name][2]) == (status, publish)
    assert re.search(words, found[name][1])
    if publish:
        dns.zone.from_text(f"$TTL 300\n{publish}", origin=".", relativize=False, check_origin=False)


@pytest.mark.parametrize("domain", ["null", "signed", "ttl0", "home"])
def test_what_is_not_there_is_not_reported(host: Host, domain: str) -> None:
    """A domain without leftovers has a line for MX, SPF and DMARC each, and no other."""
    names = {name.rpartition(" ")[2] for name in findings_of(host, f"{domain}.example")}
    assert names == {"MX", "SPF", "DMARC"}
    assert len(findings_of(host, f"{domain}.example")) == 3


def test_advice_alone_does_not_fail_and_contradictions_do(host: Host) -> None:
    """Exit status 0 with advice, 1 with --strict; 1 for what contradicts that mail is refused."""
    for domain, status, strict in (
        ("good", 0, 0),
        ("null", 0, 1),
        ("cron", 0, 0),
        ("b", 0, 1),
        ("sends", 1, 1),
        ("bad", 1, 1),
    ):
        assert check(host, "--domain", f"{domain}.example").returncode == status, domain
        checked = check(host, "--domain", f"{domain}.example", "--strict")
        assert checked.returncode == strict, domain
        assert ("; but see above: " in checked.stdout) == bool(strict), domain
    assert check(host, "--domain", "b.example", "--sends").returncode == 0
    assert check(host, "--domain", "good.example", "--sends").returncode == 1


def test_several_domains_are_reported_in_their_order(host: Host) -> None:
    """After one flag or after several; one that is bad makes it bad."""
    checked = check(host, "--domain", "good.example", "null.example", "--domain", "a.example", "good.example")
    verdicts = re.findall(r"^(\S+) (?:good|bad): ", checked.stdout, re.MULTILINE)
    assert verdicts == ["good.example", "null.example", "a.example"]
    assert checked.returncode == 1
    assert check(host, "--domain", "good.example", "null.example").returncode == 0


def test_addresses_that_are_not_public_are_connected_to_only_if_that_is_allowed(host: Host) -> None:
    """The checking host itself refuses mail at 10.0.0.2: no evidence of what a sender meets."""
    (report,) = json.loads(check(host, "--json", "--domain", "private.example").stdout)["domains"]
    _, mx_host = report["hosts"]
    assert mx_host["not_public"] == {PRIVATE: "private or reserved"}
    assert mx_host["addresses"] == []
    allowed = check(host, "--allow-private", "--domain", "private.example")
    assert f"home.example {PRIVATE}:25 good: '521 " in allowed.stdout
    assert "private.example bad: immediate bounce from Exim" in allowed.stdout


def test_a_large_mx_set_is_one_line(host: Host) -> None:
    """And neither all of its hosts nor all of their addresses are asked."""
    checked = check(host, "--domain", "many.example")
    assert re.search(
        r"^many\.example MX: 300 records, 0 mx0\.many\.example, .*, 4 mx4\.many\.example and 295 more \(TTL \d+ s\): ",
        checked.stdout,
        re.MULTILINE,
    )
    assert "many.example: 269 more names and addresses are not probed: too many\n" in checked.stdout


def test_names_are_shown_as_dns_has_them(host: Host) -> None:
    """A-labels for what people write, and escapes for what nobody should."""
    assert check(host, "--domain", "B\u00fccher.example").stdout.startswith("xn--bcher-kva.example MX: 0 . ")
    assert "MX: 10 a\\010b.example " in check(host, "--domain", "odd.example").stdout


def test_json_of_a_domain_holds_records_addresses_and_answers(host: Host) -> None:
    """One host for each name, the domain's own first; preferences, TTL, and how each address treats mail."""
    (found,) = json.loads(check(host, "--json", "--domain", "Same.Example.").stdout)["domains"]
    own, mx_host = found.pop("hosts")
    assert found.pop("words")
    assert 0 < found.pop("ttl") <= 300
    assert [finding["subject"] for finding in found.pop("findings")] == ["MX", "SPF", "DMARC"]
    assert found == {
        "name": "same.example",
        "good": True,
        "verdict": "refuses-at-mail",
        "sends": False,
        "error": None,
        "exists": True,
        "mx": [{"preference": 10, "target": "b.example"}, {"preference": 20, "target": "b.example"}],
        "null_mx": False,
        "left_out": 0,
    }
    assert (own["name"], own["preferences"]) == ("same.example", [])
    assert [(seen["address"], seen["answer"]) for seen in own["addresses"]] == [(TAKES_MAIL, "takes_mail")]
    assert (mx_host["name"], mx_host["canonical"], mx_host["preferences"]) == ("b.example", "b.example", [10, 20])
    (seen,) = mx_host["addresses"]
    assert (seen["address"], seen["answer"], seen["ending"]) == (REFUSES_MAIL, "refuses_at_mail", "FIN")
    assert [reply["code"] for reply in seen["replies"]] == [220, 250, 521, 221]


def test_a_host_beside_the_domain_is_held_to_its_own(host: Host) -> None:
    """`HOST --domain NAME` is good if both are: the port of a domain with a null MX may be shut otherwise."""
    good = check(host, GREETS_521, "--domain", "closed.example")
    assert good.returncode == 0
    assert good.stdout.startswith(f"{GREETS_521}:25 good: ")
    bad = check(host, NOTHING, "--domain", "closed.example")
    assert bad.returncode == 1
    assert bad.stdout.endswith("dma (5 days) try again\n")


def test_many_records_in_any_order_make_one_short_report() -> None:
    """A name server rotates them; what is found, and what to publish, stays the same."""
    lines = set()
    for step in (1, -1):
        with name_server() as dns_server:
            dns_server.texts["null.example"] = [f'"v=spf1 ip4:192.0.2.{n} -all"' for n in range(10)][::step]
            dns_server.texts["_dmarc.null.example"] = ['"v=DMARC1; fo=0"', '"v=DMARC1; fo=1"'][::step]
            report = asyncio.run(nullsmtpd.check_domain("null.example", resolver=dns_server.address))
        _, spf, dmarc = report.findings
        lines |= {spf.found, dmarc.publish}
    assert lines == {
        "10 records, " + ", ".join(f"'v=spf1 ip4:192.0.2.{n} -all'" for n in range(5)) + " and 5 more",
        '_dmarc.null.example. IN TXT "v=DMARC1; p=reject; fo=0"',
    }


def test_dns_that_is_silent_is_said_and_not_waited_for() -> None:
    """A name server that never answers: exit status 1 after --timeout."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        checked = run_cli("check", "--domain", "null.example", "--resolver", where, "--timeout", "0.2")
    assert checked.returncode == 1
    mx, verdict = checked.stdout.splitlines()
    assert mx == "null.example MX: ?: unknown: DNS does not answer: timed out"
    assert verdict.startswith("null.example bad: DNS does not answer")


def test_addresses_that_dns_does_not_tell_are_said_beside_those_that_it_does() -> None:
    """AAAA fails and A has an address: it is probed, and that is not the whole story."""
    with name_server() as dns_server, socket.create_server(("127.0.0.1", 0)) as taken:
        dns_server.addresses["mail.plain.example"] = dns_server.addresses["mail2.plain.example"] = ["127.0.0.1"]
        dns_server.faults["mail.plain.example AAAA"] = "servfail"
        port = str(taken.getsockname()[1])
        taken.close()
        flags = ("--allow-private", "--resolver", dns_server.flag, "--port", port)
        checked = run_cli("check", "--domain", "plain.example", *flags)
    assert f"mail.plain.example 127.0.0.1:{port} bad: connection refused" in checked.stdout
    assert "\nmail.plain.example: DNS does not answer for all of its addresses: SERVFAIL\n" in checked.stdout
    assert "\nplain.example bad: DNS does not answer for all addresses" in checked.stdout


@pytest.mark.parametrize("name", ["_dmarc.null.example", "_mta-sts.null.example", "_25._tcp.null.example"])
def test_a_record_that_dns_does_not_tell_may_contradict(name: str) -> None:
    """Nothing is known to contradict the null MX only when DNS has answered: exit status 1."""
    with name_server() as dns_server:
        assert run_cli("check", "--domain", "null.example", "--resolver", dns_server.flag).returncode == 0
        dns_server.faults[name] = "servfail"
        checked = run_cli("check", "--domain", "null.example", "--resolver", dns_server.flag)
    assert checked.returncode == 1
    assert re.search(rf"^{name} \S+: \?: unknown: DNS does not answer: SERVFAIL$", checked.stdout, re.MULTILINE)


@pytest.mark.parametrize("rdtype", ["A", "AAAA"])
def test_addresses_behind_a_null_mx_that_dns_does_not_tell_may_accept_mail(rdtype: str) -> None:
    """As those that are left out: exit status 1."""
    with name_server() as dns_server:
        dns_server.faults[f"null.example {rdtype}"] = "servfail"
        checked = run_cli("check", "--domain", "null.example", "--resolver", dns_server.flag)
    assert checked.returncode == 1
    assert "\nnull.example bad: DNS does not answer for all addresses" in checked.stdout


@pytest.mark.parametrize("is_null_mx", [False, True])
def test_a_domain_of_very_many_addresses_is_asked_a_part_of_them(
    monkeypatch: pytest.MonkeyPatch, *, is_null_mx: bool
) -> None:
    """Names and addresses are bounded, and the report has how many are left out."""
    monkeypatch.setattr("nullsmtpd.check.domain.MAX_HOSTS", 3)
    monkeypatch.setattr("nullsmtpd.check.domain.MAX_ADDRESSES", 3)
    with name_server() as dns_server, contextlib.closing(Server([LINE, FIN])) as server:
        dns_server.mx["many.example"] = ["0 ."] if is_null_mx else [f"{n} mx{n}.example." for n in range(1, 5)]
        own = [f"127.0.0.{n}" for n in range(1, 6)] if is_null_mx else ["127.0.0.1"]
        dns_server.addresses |= {"many.example": own, **{f"mx{n}.example": ["127.0.0.1"] for n in range(1, 5)}}
        dns_server.addresses["mx1.example"] = ["127.0.0.1", "127.0.0.9"]
        report = asyncio.run(
            nullsmtpd.check_domain("many.example", port=server.port, resolver=dns_server.address, allow_private=True)
        )
    assert len(report.hosts) == (1 if is_null_mx else 3)
    assert sum(len(host.probes) for host in report.hosts) == 3
    assert report.left_out == (2 if is_null_mx else 2 + 1)
    assert (report.is_good, report.verdict.name) == (False, "left-out")
    probed, left_out, verdict = str(report).splitlines()[-3:]
    assert re.match(r"\w+\.example 127\.0\.0\.\d+:", probed)
    assert left_out == f"many.example: {report.left_out} more names and addresses are not probed: too many"
    assert verdict.startswith("many.example bad: too many addresses to probe them all")


def test_no_domain_takes_more_queries_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns a domain decides how much of its DNS there is to ask for, but not how much is asked."""
    monkeypatch.setattr("nullsmtpd.check.domain.MAX_QUERIES", 5)
    with name_server() as dns_server:
        report = asyncio.run(nullsmtpd.check_domain("plain.example", resolver=dns_server.address))
        assert sum(dns_server.asked.values()) == 5
    assert not report.is_good


REJECT, NONE = "v=DMARC1; p=reject", "v=DMARC1; p=none; sp=quarantine"


@pytest.mark.parametrize(
    ("records", "found"),
    [
        ({"example": [REJECT]}, "policy reject, inherited from example"),
        ({"b.example": [NONE], "example": [REJECT]}, "policy reject, inherited from example"),  # the fewest labels
        ({"b.example": [NONE]}, "policy quarantine, inherited from b.example"),
        (
            {"a.b.example": [NONE], "b.example": [f"{REJECT}; psd=n"], "example": [NONE]},
            "policy reject, inherited from b.e",
        ),
        ({"b.example": [REJECT], "example": [f"{NONE}; psd=y"]}, "policy reject, inherited from b.example"),
        ({"a.b.example": [NONE], "example": [f"{REJECT}; psd=Y"]}, "policy reject, inherited from example"),
        ({"b.example": [REJECT, REJECT], "example": [NONE]}, "policy quarantine, inherited from example"),
        ({"x.a.b.example": [NONE], "example": [REJECT]}, "policy none, quarantine for subdomains"),
        ({"x.a.b.example": [f"{REJECT}; np=none"]}, "policy reject, none for nonexistent subdomains"),
        ({"b.example": [f"{REJECT}; sp=no"]}, "policy none, inherited from b.example"),
        ({"x.a.b.example": [f"{REJECT}; t=Y"]}, "policy reject in part"),
        ({"x.a.b.example": ["v=spf1 -all"]}, "none"),
    ],
)
def test_rfc9989_4_10_the_policy_of_the_organizational_domain_is_inherited(
    records: dict[str, list[str]], found: str
) -> None:
    """The record with the fewest labels, or that which psd= marks; the domain's own comes first."""
    with name_server() as dns_server:
        dns_server.mx["x.a.b.example"] = ["0 ."]
        dns_server.texts = {f"_dmarc.{name}": [f'"{text}"' for text in texts] for name, texts in records.items()}
        report = asyncio.run(nullsmtpd.check_domain("x.a.b.example", resolver=dns_server.address))
    (dmarc,) = (finding for finding in report.findings if finding.subject == "DMARC")
    assert dmarc.found.startswith(found)
    assert dmarc.status == ("ok" if found.startswith("policy reject, inherited") else "advice")


def test_rfc9989_4_10_a_tree_walk_takes_eight_queries() -> None:
    """Of a domain with more labels only the last seven are looked at."""
    with name_server() as dns_server:
        domain = ".".join("abcdefghijk") + ".example"
        dns_server.mx[domain] = ["0 ."]
        asyncio.run(nullsmtpd.check_domain(domain, resolver=dns_server.address))
        asked = {name.removeprefix("_dmarc.") for name, _ in dns_server.asked if name.startswith("_dmarc.")}
    assert asked == {domain, *(".".join("fghijk"[n:]) + ".example" for n in range(6)), "example"}


def test_a_name_that_is_too_long_is_not_looked_up() -> None:
    """Below the longest domain there is nothing, and that is no failure of DNS."""
    with name_server() as dns_server:
        domain = ".".join(["x" * 63] * 3 + ["y" * 61])
        dns_server.mx[domain] = ["0 ."]
        report = asyncio.run(nullsmtpd.check_domain(domain, resolver=dns_server.address))
    assert len(domain) == 253
    assert report.is_good


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({"null.example": "v=spf1 redirect=null.example"}, "redirects to null.example after 10 other redirects"),
        ({"null.example": "v=spf1 redirect=gone.example"}, "redirects to gone.example, which has not one record"),
        ({"null.example": "v=spf1 redirect=a..example"}, "redirects to a..example, which has not one record"),
        ({"null.example": "v=spf1 redirect=b.example", "b.example": "v=spf1 foo"}, "'foo' is no valid term"),
    ],
)
def test_rfc7208_6_1_a_redirect_that_leads_nowhere_is_an_error(texts: dict[str, str], words: str) -> None:
    """Receivers ignore such a record, and a domain without a valid one is not good."""
    with name_server() as dns_server:
        dns_server.texts = {name: [f'"{text}"'] for name, text in texts.items()}
        report = asyncio.run(nullsmtpd.check_domain("null.example", resolver=dns_server.address))
    (spf,) = (finding for finding in report.findings if finding.subject == "SPF")
    assert words in spf.words
    assert not report.is_good


@pytest.mark.parametrize(("last", "words"), [("-all", "no host may send"), ("~all", "not every host fails")])
def test_rfc7208_4_6_4_ten_redirects_are_followed(last: str, words: str) -> None:
    """The record at the end applies."""
    with name_server() as dns_server:
        names = ["null.example", *(f"r{n}.example" for n in range(10))]
        records = [*(f"v=spf1 redirect={name}" for name in names[1:]), f"v=spf1 {last}"]
        dns_server.texts = {name: [f'"{record}"'] for name, record in zip(names, records, strict=True)}
        report = asyncio.run(nullsmtpd.check_domain("null.example", resolver=dns_server.address))
    (spf,) = (finding for finding in report.findings if finding.subject == "SPF")
    assert (spf.status, words in spf.words) == ("ok", True)


def test_rfc7208_6_1_each_record_that_redirects_permits_its_own_hosts() -> None:
    """A domain sends mail if any record on the way says so."""
    with name_server() as dns_server:
        texts = ("v=spf1 redirect=b.example", "v=spf1 a redirect=c.example", "v=spf1 -all")
        names = ("null.example", "b.example", "c.example")
        dns_server.texts = {name: [f'"{text}"'] for name, text in zip(names, texts, strict=True)}
        assert asyncio.run(nullsmtpd.check_domain("null.example", resolver=dns_server.address)).sends


@pytest.mark.parametrize(
    ("text", "is_leftover"), [("v=STSv1;id=1", True), ("v=STSv1 ; id=1", True), ("v=STSv10", False)]
)
def test_rfc8461_3_1_a_policy_is_announced_by_its_version(text: str, *, is_leftover: bool) -> None:
    """Senders discard records of another version."""
    with name_server() as dns_server:
        dns_server.texts["_mta-sts.null.example"] = [f'"{text}"']
        report = asyncio.run(nullsmtpd.check_domain("null.example", resolver=dns_server.address))
    assert ("MTA-STS" in {finding.subject for finding in report.findings}) == is_leftover


def escaped(octets: bytes) -> str:
    return "".join(f"\\{octet:03d}" for octet in octets)


LABELS = st.binary(min_size=1, max_size=8).map(escaped)


@given(
    texts=st.dictionaries(
        st.sampled_from(
            ["x.example", "_dmarc.x.example", "_mta-sts.x.example", "_smtp._tls.x.example", "_dmarc.example"]
        ),
        st.lists(
            st.tuples(st.sampled_from([b"", b"v=spf1 ", b"v=DMARC1;", b"v=STSv1;"]), st.binary(max_size=40)), max_size=3
        ).map(lambda records: [f'"{escaped(b"".join(record))}"' for record in records]),
    ),
    mx=st.lists(st.builds("{} {}.".format, st.integers(0, 65535), st.just("") | LABELS), max_size=3, unique=True),
    addresses=st.lists(st.ip_addresses().map(str), max_size=3, unique=True),
)
@settings(max_examples=30)
def test_no_zone_makes_the_check_fail(texts: dict[str, list[str]], mx: list[str], addresses: list[str]) -> None:
    """Invariant: whatever a domain publishes, there is a report of printable lines, and it can be JSON."""
    with name_server() as dns_server:
        dns_server.mx["x.example"], dns_server.texts = mx, texts
        dns_server.addresses["x.example"] = [address for address in addresses if not_public(address)]
        report = asyncio.run(nullsmtpd.check_domain("x.example", resolver=dns_server.address))
    assert all(line.isascii() and line.isprintable() for line in str(report).splitlines())
    assert json.loads(json.dumps(report.as_json()))
    assert not any(host.probes for host in report.hosts)


def test_without_dnspython_one_line_says_what_to_install() -> None:
    """The extra `relay` is missing: exit status 2."""
    program = "import sys; sys.modules['dns'] = None; from nullsmtpd.cli.check import run; sys.exit(run({!r}, {{}}))"
    command = [sys.executable, "-c", program.format(["--domain", "null.example"])]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert re.fullmatch(
        r"nullsmtpd check: the package dns\S* is missing: pip install 'nullsmtpd-521\[relay\]'\n", ran.stderr
    )


def test_check_domain_tells_a_program_the_same() -> None:
    """The library's function: a report with the answer of DNS, the findings, the hosts, and the verdict."""
    with name_server() as dns_server:
        report = asyncio.run(nullsmtpd.check_domain("plain.example", resolver=dns_server.address, sends=True))
    assert isinstance(report, nullsmtpd.DomainReport)
    assert report.mx is not None
    assert [host.name for host in report.hosts] == ["plain.example", "mail.plain.example", "mail2.plain.example"]
    assert all(isinstance(host, nullsmtpd.HostReport) for host in report.hosts)
    assert report.sends
    assert (report.is_good, report.verdict.name) == (False, "no-address")
    with pytest.raises(nullsmtpd.DomainError):
        asyncio.run(nullsmtpd.check_domain("no domain"))


def test_going_by_the_greeting_takes_leave() -> None:
    """In mode `any` a server that means its 220 hears EHLO, MAIL and QUIT, and no recipient."""
    with contextlib.closing(Server(DEEDS[TAKES_MAIL])) as server:
        seen = nullsmtpd.probe("127.0.0.1", server.port, mode=ANY)
    assert seen.fault.startswith("the reply to MAIL is 250, not 521: ")
    assert server.heard[:3] == [b"EHLO [127.0.0.1]\r\n", b"MAIL FROM:<>\r\n", b"QUIT\r\n"]


@pytest.mark.parametrize(
    "greeting",
    [b"220 M\xfcller\r\n", b"220 a\n", b"220 \x00" + b"x" * 600 + b"\r\n", b"220-a\r\n250-b\n220\n"],
)
def test_replies_that_break_the_standard_hide_no_server_that_takes_mail(greeting: bytes) -> None:
    """Mail servers accept other octets, bare LF and long lines: a fault, but mail goes there."""
    deeds = (greeting, LISTEN, b"250-caf\xe9\n250 a\n", LISTEN, b"250 OK\r\n", LISTEN, FIN)
    with contextlib.closing(Server(deeds)) as server:
        seen = nullsmtpd.probe("127.0.0.1", server.port, mode=ANY)
        assert nullsmtpd.probe("127.0.0.1", server.port, mode="mail").codes[:2] != ["220", "250"]
    assert behaviour_of(seen) is VERDICTS["takes-mail"]
    assert seen.fault
    assert str(seen).isprintable()


@pytest.mark.parametrize("mode", ["mail", ANY])
def test_a_server_without_ehlo_is_greeted_with_helo_once(mode: str) -> None:
    """RFC 5321 §3.2, as senders do; a mode that was asked for has its EHLO."""
    deeds = (b"220 a\r\n", LISTEN, b"502 what\r\n", LISTEN, b"250 a\r\n", LISTEN, b"250 OK\r\n", LISTEN, FIN)
    with contextlib.closing(Server(deeds)) as server:
        seen = nullsmtpd.probe("127.0.0.1", server.port, mode=mode)
    if mode == ANY:
        assert behaviour_of(seen) is VERDICTS["takes-mail"]
        assert server.heard[:3] == [b"EHLO [127.0.0.1]\r\n", b"HELO [127.0.0.1]\r\n", b"MAIL FROM:<>\r\n"]
    else:
        assert seen.fault.startswith("the reply to EHLO is 502, not 250")
