"""SPF and DMARC records, and the lines of a zone file that `check` advises."""

from typing import Any

import dns.rdatatype
import dns.zone
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nullsmtpd.check.policies import SPF, dmarc_policies, dmarc_text, parse_dmarc, parse_spf, spf_texts, zone_txt

#: What a TXT record may hold: any octets, one character for each, and much that is nearly an SPF or DMARC record.
OCTETS = st.text(st.characters(max_codepoint=255), max_size=60)
SPF_TERMS = """
v=spf1 V=SPF1 -all ~ALL all +all ?all a mx:b.example/24//64 ptr include:%{d}.example exists:%{ir}.x ip4:192.0.2.0/24
ip6:2001:db8::/32 ip4:1.2.3 redirect=x redirect= exp=x exp=y unknown=%{ foo - = %
"""
SPF_TEXTS = st.lists(st.sampled_from([*SPF_TERMS.split(), " ", "  ", "\t", "\xff", "\x00"])).map("".join)
DMARC_TAGS = (
    'v=DMARC1 v=dmarc1 ; p=reject p=none sp=none np=x pct=50 t=y psd=n rua=mailto:"a\\b"@x = == p \xe9=\xff \x00'
)
DMARC_TEXTS = st.lists(st.sampled_from([*DMARC_TAGS.split(), "V = DMARC1", "; ", " ", "p = Reject", "\t"])).map("".join)

NO_SPF_TERMS = """
foo all:x include include: ip4 ip4:1.2.3 ip4:192.0.2.1/33 ip4:192.0.2.1/032 ip4:192.0.2.0/ ip4:2001:db8::1
ip6:192.0.2.1 ip6:2001:db8::/129 a: a/33 a//129 a/01 a:192.0.2.1 a:b.example:25 a:museum a:museum. a:b.123 a:b.-c a:b.c-
a:b.example/33 mx:%{x mx:%{a}.example exists:%{d0}.example exists:%{c}.example exists:b.example/24 include:b.example/24
redirect= redirect=-all exp=-all exp=%{r}.example unknown=%{a} unknown=%
"""


@pytest.mark.parametrize(
    ("text", "sends", "passes_all", "redirect"),
    [
        ("v=spf1 -all", False, False, ""),
        ("V=SPF1  -ALL ", False, False, ""),
        ("v=spf1 -ip4:192.0.2.1 -all", False, False, ""),
        ("v=spf1 -all a", False, False, ""),  # what follows "all" is never evaluated (RFC 7208 §5.1)
        ("v=spf1 -all redirect=x.example", False, False, ""),  # RFC 7208 §5.1
        ("v=spf1 unknown=x -all", False, False, ""),
        ("v=spf1 redirect=x.example", False, False, "x.example"),
        ("v=spf1", True, False, ""),  # neutral (RFC 7208 §4.7)
        ("v=spf1 ~all", True, False, ""),
        ("v=spf1 ?all", True, False, ""),
        ("v=spf1 a -all", True, False, ""),
        ("v=spf1 mx:b.example/24//64 a/24 ptr ip6:2001:db8::/32 exists:%{ir}.%{v}._spf.%{d2} -all", True, False, ""),
        ("v=spf1 a/0//0 a//128 mx:b.1-2 ptr:b.example. exists:%{L1r+-}%%%-%_ ip6:::/0 ip4:0.0.0.0/32", True, False, ""),
        ("v=spf1 exp=%{d}.example unknown= unknown=a%{s}/:b -all", False, False, ""),
        ("v=spf1 +all", True, True, ""),
        ("v=spf1 all", True, True, ""),
        ("v=spf1 mx redirect=x.example", True, False, "x.example"),
        ("v=spf1 redirect=%{d}.example", True, False, ""),
    ],
)
def test_rfc7208_4_6_what_a_record_permits(text: str, *, sends: bool, passes_all: bool, redirect: str) -> None:
    """Whether mail from some host does not fail, and whose record applies."""
    assert parse_spf(text) == SPF("", sends, passes_all, redirect)


@pytest.mark.parametrize(
    "term",
    [*NO_SPF_TERMS.split(), "exp=a.b exp=a.b", "redirect=a.b redirect=a.b", "\t-all", "a\x00", "caf\xe9", "exists:%"],
)
def test_rfc7208_4_6_a_syntax_error_makes_receivers_ignore_the_record(term: str) -> None:
    """The whole record is a permerror, and permits nothing."""
    spf = parse_spf(f"v=spf1 {term} a -all")
    assert spf.error
    assert not spf.sends


@given(OCTETS | SPF_TEXTS)
@example("v=spf1 ip4:" + "9" * 5000)
def test_no_text_makes_the_spf_parser_fail(text: str) -> None:
    """Invariant: any octets are a record or none; one with an error permits nothing, and the error is printable."""
    for record in spf_texts([text]):
        spf = parse_spf(record)
        assert spf.error.isascii()
        assert (spf.error + "x").isprintable()
        assert not (spf.error and (spf.sends or spf.redirect))
        assert not (spf.passes_all and not spf.sends)


@given(st.lists(st.sampled_from(["-a", "-mx", "-include:x.example", "-ip4:192.0.2.1", "a", "~mx", "?ptr"]), max_size=5))
def test_a_record_sends_nothing_if_all_of_its_mechanisms_fail(terms: list[str]) -> None:
    """Invariant: one qualifier other than "-" before "-all", and some mail does not fail."""
    assert parse_spf(" ".join(["v=spf1", *terms, "-all"])).sends == any(not term.startswith("-") for term in terms)


def test_rfc7208_4_5_a_record_begins_with_its_version() -> None:
    """``v=spf10`` is none, and neither is what begins otherwise."""
    assert spf_texts(["v=spf1", "v=spf1 -all", "v=spf10 -all", " v=spf1", "v=spf1\t-all", "x"]) == [
        "v=spf1",
        "v=spf1 -all",
    ]


@pytest.mark.parametrize(
    ("text", "policies"),
    [
        ("v=DMARC1; p=reject", "reject reject reject"),
        ("v=DMARC1;p=reject;", "reject reject reject"),
        ("V = DMARC1 ;\tP = Reject ; sp=none", "reject none none"),
        ("v=DMARC1; p=reject; np=None", "reject reject none"),
        ("v=DMARC1; p=none; sp=quarantine; np=reject", "none quarantine reject"),
        ("v=DMARC1; rua=mailto:x@example.org", "none none none"),
        ("v=DMARC1; p=rejekt; sp=quarantine", "none none none"),
        ("v=DMARC1; p=reject; sp=?", "none none none"),
        ("v=DMARC1; p=reject; np=", "none none none"),
        ("v=DMARC1; nonsense; p=reject; p=none", "reject reject reject"),
    ],
)
def test_rfc9989_4_7_what_a_record_asks_for(text: str, policies: str) -> None:
    """The policy of the domain, of its subdomains, and of those that do not exist; §4.10.1: an invalid one is none."""
    tags = parse_dmarc(text)
    assert tags
    assert dmarc_policies(tags) == tuple(policies.split())


def test_what_is_no_tag_is_not_kept() -> None:
    """The record to publish has the valid tags of the one that is there."""
    tags = parse_dmarc("v=DMARC1; p=none; =x; 1=x; a b=c; fo=1; x_1=y")
    assert tags
    assert dmarc_text(tags) == "v=DMARC1; p=reject; fo=1; x_1=y"


@pytest.mark.parametrize(
    "text", ["", "v=DMARC1x; p=reject", "v=dmarc1; p=reject", "p=reject; v=DMARC1", "v=spf1 -all", ";"]
)
def test_rfc7489_6_3_what_does_not_begin_with_the_version_is_no_record(text: str) -> None:
    """RFC 7489 §6.6.3 discards it."""
    assert parse_dmarc(text) is None


@given(OCTETS | DMARC_TEXTS)
def test_no_text_makes_the_dmarc_parser_fail_and_its_correction_asks_for_rejection(text: str) -> None:
    """Invariant: any octets are a record or none; corrected, it asks for rejection and has the same other tags."""
    if (tags := parse_dmarc(text)) is None:
        return
    corrected = parse_dmarc(dmarc_text(tags))
    assert corrected
    assert set(dmarc_policies(corrected)) == {"reject"}
    others = {name: value for name, value in tags.items() if name not in {"p", "sp", "np", "pct", "t"}}
    assert {name: value for name, value in corrected.items() if name != "p"} == others


@given(st.text(st.characters(max_codepoint=255), max_size=600))
@example('"\\;() \x7f')
def test_a_line_of_a_zone_file_is_read_as_what_it_says(text: str) -> None:
    """Invariant: a name server that reads the line has the text, whatever is in it (RFC 1035 §5.1)."""
    line = zone_txt("_dmarc.example.org", text)
    assert line.isascii()
    assert line.isprintable()
    zone = dns.zone.from_text(f"$TTL 300\n{line}", origin=".", relativize=False, check_origin=False)
    records: list[Any] = list(zone.iterate_rdatas(dns.rdatatype.TXT))
    ((name, _, record),) = records
    assert name.to_text() == "_dmarc.example.org."
    assert b"".join(record.strings) == text.encode("latin-1")
