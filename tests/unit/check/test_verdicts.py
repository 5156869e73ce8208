"""What a sender experiences, from one server's replies and from all that a domain has."""

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nullsmtpd
from nullsmtpd.check.dialogue import Reply
from nullsmtpd.check.domain import not_public
from nullsmtpd.check.probe import FIN, LEFT, NO_FAMILY, REFUSED, RESET, SILENCE, UNREACHABLE, Probe
from nullsmtpd.check.senders import SENDERS
from nullsmtpd.check.verdicts import BY_CODES, BY_ENDING, VERDICTS, Verdict, behaviour_of, verdict_on

NO_MX = nullsmtpd.MXAnswer("example", (), exists=True, ttl=0)


def behaving(*names: str) -> set[Verdict]:
    return {VERDICTS[name] for name in names}


@pytest.mark.parametrize(
    ("codes", "ending", "behaviour"),
    [
        ("521", FIN, "refuses-at-greeting"),
        ("521 221", FIN, "refuses-at-greeting"),
        ("554", LEFT, "refuses-at-greeting"),
        ("450", LEFT, "not-now"),
        ("220", FIN, "broken"),
        ("220", SILENCE, "broken"),
        ("354", LEFT, "broken"),
        ("220 521", FIN, "broken"),  # closed instead of answering HELO: senders try again
        ("220 521 521", LEFT, "refuses-at-ehlo"),
        ("220 502 502", LEFT, "refuses-at-ehlo"),
        ("220 502 250 250", LEFT, "takes-mail"),
        ("220 502 250 521 221", FIN, "refuses-at-mail"),
        ("220 502 421", LEFT, "not-now"),
        ("220 451", LEFT, "not-now"),
        ("220 250", RESET, "broken"),
        ("220 250 521 221", FIN, "refuses-at-mail"),
        ("220 250 530", LEFT, "refuses-this-sender"),
        ("220 250 550", LEFT, "refuses-this-sender"),
        ("220 250 452", LEFT, "not-now"),
        ("220 250 250", LEFT, "takes-mail"),
        ("", RESET, "broken"),
        ("", FIN, "broken"),
        ("", SILENCE, "silent"),
        ("", REFUSED, "no-listener"),
        ("", UNREACHABLE, "unreachable"),
        ("", NO_FAMILY, "unknown"),
    ],
)
def test_a_sender_goes_by_the_first_reply_that_is_not_2xx(codes: str, ending: str, behaviour: str) -> None:
    """RFC 5321 §4.3.2: 5xx is permanent, 4xx temporary; what is no reply at all is temporary too."""
    seen = Probe("192.0.2.1", 25, 5.0)
    seen.replies = [Reply(code, "") for code in codes.split()]
    seen.received, seen.ending = codes.encode(), ending
    assert behaviour_of(seen).name == behaviour


@pytest.mark.parametrize(
    ("groups", "name", "words"),
    [
        ([{"unknown"}], "unknown", "no address can be reached from this host"),
        (
            [{"unknown", "no-listener"}],
            "unknown-in-part",
            "some addresses .* the others: nothing listens",
        ),
        (
            [{"unknown", "refuses-at-mail"}],
            "unknown-in-part",
            "some addresses .* the others: immediate",
        ),
        ([{"refuses-at-mail"}, {"unknown"}], "unknown-in-part", "may accept mail"),
        ([{"unknown"}, {"takes-mail"}], "takes-mail", "250 to MAIL"),
    ],
)
def test_an_address_that_cannot_be_reached_from_here_is_never_good(
    groups: list[set[str]], name: str, words: str
) -> None:
    """Without IPv6 on the checking host it is unknown how the IPv6 addresses behave."""
    verdict = verdict_on(NO_MX, [behaving(*group) for group in groups])
    assert (verdict.name, verdict.is_good) == (name, False)
    assert re.search(words, verdict.words)


def test_what_is_less_preferred_than_a_refusal_at_mail_still_has_to_be_known() -> None:
    """No sender that bounces goes on to it, but those that try all of them may find that it takes mail."""
    refusing, later = behaving("refuses-at-mail"), behaving("not-now", "silent")
    assert verdict_on(NO_MX, [set(), refusing, later]).name == "refuses-at-mail"
    assert verdict_on(NO_MX, [later, refusing]).name == "mixed"
    assert verdict_on(NO_MX, [refusing, later], is_known=False).name == "dns-fails-in-part"


@pytest.mark.parametrize("name", [*BY_ENDING.values(), *(name for _, name in BY_CODES), "broken", "not-public"])
def test_every_behaviour_has_a_verdict_and_one_alone_is_good(name: str) -> None:
    """Without a null MX, only a refusal at MAIL is reported to every author at once."""
    verdict = verdict_on(NO_MX, [behaving(name)])
    assert (verdict.name, verdict.is_good) == (name, name == "refuses-at-mail")


@pytest.mark.parametrize("name", ["refuses-at-greeting", "refuses-at-ehlo", "not-now"])
def test_every_sender_of_the_table_is_named(name: str) -> None:
    """With its fate, or with its days: whoever reads the words knows what each one does."""
    assert all(sender.name in VERDICTS[name].words for sender in SENDERS)


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("0.0.0.0", "unspecified"),  # noqa: S104 - nothing is bound
        ("::", "unspecified"),
        ("127.0.0.1", "loopback"),
        ("127.255.0.1", "loopback"),
        ("::1", "loopback"),
        ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("fec0::1", "private or reserved"),
        ("::ffff:45.0.0.2", "private or reserved"),
        ("::45.0.0.2", "private or reserved"),
        ("100.64.0.1", "private or reserved"),
        *((address, "private or reserved") for address in ("10.0.0.1", "172.16.0.1", "192.168.0.1", "fd00::1")),
        *((address, "private or reserved") for address in ("192.0.2.1", "2001:db8::1", "198.18.0.1", "240.0.0.1")),
        *((address, "private or reserved") for address in ("255.255.255.255", "64:ff9b:1::a00:1", "2002:a00:1::1")),
        *((address, "private or reserved") for address in ("3fff::1", "5f00::1", "4000::1", "::ffff:0:a00:1")),
        ("64:ff9b::7f00:1", "loopback"),
        ("64:ff9b::2d00:2", ""),
        ("45.0.0.2", ""),
        ("2a00::2", ""),
    ],
)
def test_addresses_that_no_sender_on_the_internet_can_reach(address: str, kind: str) -> None:
    """RFC 6890's special-purpose addresses, and IPv6 addresses that contain one."""
    assert not_public(address) == kind


@given(st.ip_addresses())
def test_what_python_calls_global_is_public_unless_it_has_another_kind(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    """Invariant: no address that Python knows to be private, loopback or the like is ever public."""
    kind = not_public(str(address))
    if not kind and not str(address).startswith("64:ff9b:"):
        assert address.is_global
        assert not address.is_multicast
