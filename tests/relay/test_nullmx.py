"""A domain's mail according to DNS, with a real name server on loopback."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import uvloop
from hypothesis import example, given
from hypothesis import strategies as st
from name_server import NameServer, name_server
from support import PATIENCE, require

import nullsmtpd
from nullsmtpd.nullmx import (
    MX,
    DNSError,
    DomainError,
    MXAnswer,
    domain_of,
    look_up_mx,
    resolver_address,
)


@pytest.fixture
def dns_server() -> Iterator[NameServer]:
    with name_server() as server:
        yield server


def look_up(server: NameServer, domain: str, timeout: float = PATIENCE) -> MXAnswer:
    return asyncio.run(look_up_mx(domain, resolver=server.address, timeout=timeout))


@pytest.mark.parametrize(
    ("domain", "accepts"),
    [
        ("null.example", False),
        ("someone@NULL.example.", False),
        ("plain.example", True),
        ("beside.example", True),
        ("preference.example", True),
        ("empty.example", True),
        ("absent.example", True),
    ],
)
def test_only_a_proper_null_mx_accepts_no_mail(dns_server: NameServer, domain: str, *, accepts: bool) -> None:
    """RFC 7505 §3: a single MX, preference 0, target root; anything else does not declare that it accepts none."""
    assert asyncio.run(nullsmtpd.accepts_mail(domain, resolver=dns_server.address)) is accepts


@pytest.mark.parametrize("domain", ["beside.example", "preference.example"])
def test_a_root_mx_beside_others_or_of_another_preference_is_invalid(dns_server: NameServer, domain: str) -> None:
    """RFC 7505 §3 forbids both."""
    answer = look_up(dns_server, domain)
    assert answer.is_invalid_null_mx
    assert not answer.is_null_mx


def test_the_mx_set_is_in_order_and_has_its_ttl(dns_server: NameServer) -> None:
    """The most preferred first, targets without the final dot."""
    dns_server.mx["plain.example"].reverse()
    answer = look_up(dns_server, "Plain.EXAMPLE")
    assert answer == MXAnswer(
        "plain.example", (MX(10, "mail.plain.example"), MX(20, "mail2.plain.example")), exists=True, ttl=300
    )
    assert not answer.is_invalid_null_mx


@pytest.mark.parametrize(("domain", "exists"), [("empty.example", True), ("absent.example", False)])
def test_the_soa_has_the_ttl_of_an_answer_without_records(dns_server: NameServer, domain: str, *, exists: bool) -> None:
    """RFC 2308 §5: the lesser of the SOA's TTL and its last field; NXDOMAIN differs from no data."""
    assert look_up(dns_server, domain) == MXAnswer(domain, (), exists=exists, ttl=60)


def test_a_cname_is_followed_and_its_ttl_counts(dns_server: NameServer) -> None:
    """The MX set of the canonical name is the alias's (RFC 5321 §5.1)."""
    dns_server.aliases["alias.example"] = "null.example"
    answer = look_up(dns_server, "alias.example")
    assert answer.is_null_mx
    assert answer.domain == "alias.example"


@pytest.mark.parametrize("fault", ["truncated", "severed"])
def test_a_truncated_answer_is_asked_for_again_over_tcp(dns_server: NameServer, fault: str) -> None:
    """The TC bit leads to one query over TCP, and its answer counts; records may be cut off anywhere."""
    dns_server.faults["null.example"] = fault
    assert look_up(dns_server, "null.example").is_null_mx
    assert dns_server.asked["null.example", "tcp"] == 1


def test_names_are_absolute_whatever_the_search_list(dns_server: NameServer) -> None:
    """A name of one label is looked up as it is, and nothing is appended to it."""
    assert not look_up(dns_server, "nowhere").exists
    assert {name for name, _ in dns_server.asked} == {"nowhere"}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("servfail", "SERVFAIL"),
        ("silence", "timed out"),
        ("garbage", "timed out"),
        ("stranger", "timed out"),
    ],
)
def test_without_a_usable_answer_there_is_an_error(dns_server: NameServer, fault: str, reason: str) -> None:
    """A failure of DNS is neither "accepts mail" nor "accepts no mail". Garbage is ignored: it may be forged."""
    dns_server.faults["null.example"] = fault
    with pytest.raises(DNSError) as caught:
        look_up(dns_server, "null.example", timeout=0.5 if reason == "timed out" else PATIENCE)
    assert str(caught.value) == f"DNS lookup of null.example MX failed: {reason}"
    assert caught.value.reason == reason


def test_a_query_that_is_lost_is_sent_again(dns_server: NameServer) -> None:
    """In the second half of the time."""
    dns_server.faults["null.example"] = "lost"
    assert look_up(dns_server, "null.example", timeout=2).is_null_mx


def test_a_name_server_that_cannot_be_reached_is_an_error() -> None:
    """The reason is that of the system: a broadcast address needs a socket option."""
    with pytest.raises(DNSError, match=r"Permission denied$"):
        asyncio.run(look_up_mx("null.example", resolver=("255.255.255.255", 53), timeout=PATIENCE))


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("example.org", "example.org"),
        ("Example.ORG.", "example.org"),
        ("someone@example.org", "example.org"),
        ('"a@b"@example.org', "example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example.", "xn--bcher-kva.example"),
        ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
        ("faß.de", "xn--fa-hia.de"),  # IDNA 2008, where IDNA 2003 had "fass"
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("under_score.example", "under_score.example"),
        ("_dmarc.bücher.example", "_dmarc.xn--bcher-kva.example"),
        ("☃.example", "xn--n3h.example"),  # UTS #46 allows symbols, which IDNA 2008 does not
        ("org", "org"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
        (".".join(["a" * 61] * 4) + ".aaaaa", ".".join(["a" * 61] * 4) + ".aaaaa"),
    ],
)
def test_the_domain_of_a_name_or_an_address_is_in_the_form_of_dns(text: str, domain: str) -> None:
    """After the last @, in A-labels and lower case, without the final dot."""
    assert domain_of(text) == domain


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "@", "someone@", "someone@.", "a..b", ".a", "a..", "-a.example", "a-.example", "a b.example"),
        *("a@b@", "a\0.example", "a.example\n", "a/b", "*", "a" * 64 + ".example", "ü..example"),
        *("[192.0.2.1]", "someone@[192.0.2.1]", "someone@[IPv6:2001:db8::1]", "x@[odd:a@b.example]", "192.0.2.1"),
        *("2001:db8::1", "\uff11\uff12\uff17.0.0.1", ".".join(["a" * 61] * 4) + ".aaaaaa", "ü" * 100_000),
        *("ü" * 60 + ".example", "\udcff.example", "\ufffd"),
    ],
)
def test_texts_that_are_no_domain_are_an_error(text: str) -> None:
    """Empty and absurd names, literals and IP addresses, names and labels that are too long, invalid characters."""
    with pytest.raises(DomainError):
        domain_of(text)


@given(st.text(max_size=300) | st.from_regex(r"\A[a-zÀ-ɏ0-9._@-]{0,270}\Z"))
@example("a@example.org")
def test_any_text_is_a_domain_or_an_error(text: str) -> None:
    """Invariant: a result has at most 253 plain characters and is its own result; nothing else is raised."""
    try:
        domain = domain_of(text)
    except DomainError:
        return
    assert domain_of(domain) == domain == domain.lower()
    assert 0 < len(domain) <= 253
    assert set(domain) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")
    assert all(0 < len(label) <= 63 for label in domain.split("."))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1", ("127.0.0.1", 53)),
        ("127.0.0.1:5353", ("127.0.0.1", 5353)),
        ("::1", ("::1", 53)),
        ("[::1]", ("::1", 53)),
        ("[::1]:5353", ("::1", 5353)),
    ],
)
def test_a_resolver_is_an_ip_address_and_maybe_a_port(text: str, address: tuple[str, int]) -> None:
    """Of both families; the default port is 53."""
    assert resolver_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "ns.example", "ns.example:53", "127.0.0.1:0", "127.0.0.1:x", ":53", "[::1", "1.2.3"]
)
def test_other_texts_are_no_resolver(text: str) -> None:
    """A name would have to be resolved first."""
    with pytest.raises(ValueError, match=r"^(has|is) "):
        resolver_address(text)


@given(st.text(max_size=40))
def test_any_text_is_a_resolver_or_an_error(text: str) -> None:
    """Invariant: an address and a port are returned, or a `ValueError` is raised."""
    try:
        host, port = resolver_address(text)
    except ValueError:
        return
    assert host
    assert 0 < port < 65536


def test_without_the_extra_the_message_says_what_to_install() -> None:
    """The error names the command; importing nullsmtpd itself needs none of the packages."""
    code = (
        "import sys, asyncio; sys.modules['dns'] = None\n"
        "import nullsmtpd\n"
        "try: asyncio.run(nullsmtpd.accepts_mail('example.org'))\n"
        "except ImportError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert "pip install 'nullsmtpd-521[relay]'" in result.stdout


def test_a_query_that_is_cancelled_leaves_nothing_open(dns_server: NameServer) -> None:
    """At any moment, also while its socket is being connected."""
    dns_server.faults["null.example"] = "silence"

    async def scenario() -> int:
        before = len(os.listdir("/proc/self/fd"))
        for turns in list(range(10)) * 5:
            query = asyncio.ensure_future(look_up_mx("null.example", resolver=dns_server.address, timeout=0.2))
            for _ in range(turns):
                await asyncio.sleep(0)
            query.cancel()
            with pytest.raises(asyncio.CancelledError):
                await query
        return len(os.listdir("/proc/self/fd")) - before

    require(sys.platform == "linux", "Linux's /proc")
    loop = uvloop.new_event_loop()
    assert loop.run_until_complete(scenario()) <= 0
    loop.close()


def test_all_that_a_query_needs_is_imported_before(dns_server: NameServer) -> None:
    """After privileges are dropped, the process may be unable to read it."""
    dns_server.faults["cut.example"] = "cut"
    code = f"""
import asyncio, sys, uvloop
from nullsmtpd import nullmx as null_mx
null_mx.load_extra()

async def ask():
    before = set(sys.modules)
    for name in ("null.example", "plain.example", "absent.example", "cut.example", "b\u00fccher.example"):
        try:
            await null_mx.look_up_mx(name, resolver={dns_server.address}, timeout=5)
        except null_mx.DNSError:
            pass
    print(sorted(set(sys.modules) - before))

uvloop.new_event_loop().run_until_complete(ask())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == "[]\n"
