"""SPF and DMARC records: which there are, what they permit, and how a record is written in a zone file.

Text is that of a TXT record with its strings joined, one character for each octet.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from nullsmtpd.check.dialogue import quoted

__all__ = ["SPF", "dmarc_policies", "dmarc_text", "parse_dmarc", "parse_spf", "spf_texts", "zone_txt"]

# RFC 7208 §7.1: what stands for a domain may hold macros, and ends in a macro or in a top-level label after a dot.
_MACRO = r"%(?:[%_-]|\{[slodiphv](?:0*[1-9][0-9]*)?r?[-.+,/_=]*\})"
_MACRO_STRING = rf"(?:{_MACRO}|[!-$&-~])*"
_TOP_LABEL = r"(?![0-9]+(?![a-z0-9-]))[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = rf"{_MACRO_STRING}(?:{_MACRO}|\.{_TOP_LABEL}\.?)"
_LENGTH4, _LENGTH6 = r"(?:[12]?[0-9]|3[0-2])", r"(?:[1-9]?[0-9]|1[01][0-9]|12[0-8])"  # of a prefix, in bits
_TERM = re.compile(
    rf"(?P<qualifier>[+?~-]?)(?:(?P<all>all)|(?:include|exists):{_NAME}|ptr(?::{_NAME})?"
    rf"|(?:a|mx)(?::{_NAME})?(?:/{_LENGTH4})?(?://{_LENGTH6})?"
    rf"|ip4:(?P<ip4>[0-9.]+)(?:/{_LENGTH4})?|ip6:(?P<ip6>[0-9a-f:.]+)(?:/{_LENGTH6})?)"
    rf"|(?P<once>redirect|exp)=(?P<domain>{_NAME})|(?!(?:redirect|exp)=)[a-z][a-z0-9_.-]*={_MACRO_STRING}",
    re.IGNORECASE,
)

_POLICIES = {"none", "quarantine", "reject"}

_MAX_STRING = 255  # octets of one character-string in a TXT record, RFC 1035 §3.3
# RFC 1035 §5.1: characters that a quoted string of a zone file cannot contain as they are.
_ESCAPES = {code: f"\\{code:03d}" for code in (*range(32), *range(127, 256))} | {ord(c): f"\\{c}" for c in '"\\'}


class SPF(NamedTuple):
    """What one record permits (RFC 7208).

    ``error``: why receivers ignore it (permerror), or ``""``. ``sends``: mail from some host, or from every host, does
    not fail. ``passes_all``: mail from every host passes. ``redirect``: the domain whose record applies, or ``""``.
    """

    error: str = ""
    sends: bool = False
    passes_all: bool = False
    redirect: str = ""


def spf_texts(texts: Iterable[str]) -> list[str]:
    """Return the SPF records among TXT records (RFC 7208 §4.5)."""
    return [text for text in texts if re.match(r"v=spf1(?: |\Z)", text, re.IGNORECASE)]


def parse_spf(text: str) -> SPF:
    """Parse one SPF record. Includes and hosts are not looked up: who names any wants their mail to pass."""
    domains: dict[str, str] = {}  # of the modifiers redirect and exp
    qualifiers: list[str] = []  # of the mechanisms that count, all of them up to "all"
    ends_in_all = False
    for term in filter(None, text.split(" ")[1:]):
        found = _TERM.fullmatch(term)
        once = ((found and found["once"]) or "").lower()
        if not found or once in domains or not (_is_address(found["ip4"], 4) and _is_address(found["ip6"], 6)):
            return SPF(f"{quoted(term)} is no valid term or is repeated")
        if once:
            domains[once] = found["domain"]
        elif found["qualifier"] is not None and not ends_in_all:
            qualifiers.append(found["qualifier"] or "+")
            ends_in_all = bool(found["all"])
    redirect = "" if ends_in_all else domains.get("redirect", "")
    if "%" in redirect or not (ends_in_all or redirect):  # it depends on the message, or it is neutral (§4.7)
        return SPF(sends=True)
    sends = any(qualifier != "-" for qualifier in qualifiers)
    return SPF(sends=sends, passes_all=ends_in_all and qualifiers[-1] == "+", redirect=redirect)


def _is_address(text: str | None, version: int) -> bool:
    try:
        return text is None or ipaddress.ip_address(text).version == version
    except ValueError:
        return False


def parse_dmarc(text: str) -> dict[str, str] | None:
    """Return the tags of a DMARC record, or `None` for another TXT record (RFC 7489 §6.3, RFC 9989 §4.7).

    Parts that are no tag are ignored, as both RFCs ask for; the first of several with one name counts.
    """
    tags: dict[str, str] = {}
    for part in text.split(";"):
        name, equals, value = (piece.strip(" \t") for piece in part.partition("="))
        if not tags and (name.lower(), value) != ("v", "DMARC1"):
            return None
        if equals and re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name):
            tags.setdefault(name.lower(), value)
    return tags


def dmarc_policies(tags: Mapping[str, str]) -> tuple[str, str, str]:
    """Return what to do with mail from the record's domain, its existing and its nonexistent subdomains.

    Each is none, quarantine or reject. One invalid policy makes all of them none (RFC 7489 §6.6.3, RFC 9989 §4.10.1).
    """
    own = tags.get("p", "").lower()
    below = tags.get("sp", own).lower()
    nonexistent = tags.get("np", below).lower()
    return (own, below, nonexistent) if {own, below, nonexistent} <= _POLICIES else ("none", "none", "none")


def dmarc_text(tags: Mapping[str, str]) -> str:
    """Return a record with these tags that asks for rejection, of subdomains too, and whose reports stay the same."""
    kept = {name: value for name, value in tags.items() if name not in {"v", "p", "sp", "np", "pct", "t"}}
    return "; ".join(f"{name}={value}" for name, value in {"v": "DMARC1", "p": "reject", **kept}.items())


def zone_txt(name: str, text: str) -> str:
    """Return the line of a zone file for a TXT record (RFC 1035 §5.1)."""
    parts = [text[start : start + _MAX_STRING] for start in range(0, len(text) or 1, _MAX_STRING)]
    return f"{name}. IN TXT " + " ".join(f'"{part.translate(_ESCAPES)}"' for part in parts)
