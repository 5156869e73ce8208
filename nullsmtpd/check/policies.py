"""SPF and DMARC records: which there are, what they permit, and how a record is written in a zone file.

Text is that of a TXT record with its strings joined, one character for each octet.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from nullsmtpd.check.dialogue import quoted

__all__ = ["SPF", "dmarc_policy", "dmarc_text", "parse_dmarc", "parse_spf", "spf_texts", "zone_txt"]

# RFC 7208 §7.1: what stands for a domain may hold macros. The name is not looked up, so its labels are not checked.
_NAME = r"(?:%[%_-]|%\{[a-z][0-9]{0,3}r?[-.+,/_=]*\}|[!-$&-~])+"
_CIDR = r"(?:/[0-9]{1,2})?(?://[0-9]{1,3})?"
_MECHANISM = re.compile(
    rf"(?P<qualifier>[+?~-]?)(?:(?P<all>all)|(?:include|exists):{_NAME}|(?:a|mx)(?::{_NAME})?{_CIDR}|ptr(?::{_NAME})?"
    r"|ip4:(?P<ip4>[0-9.]+(?:/[0-9]{1,2})?)|ip6:(?P<ip6>[0-9a-f:.]+(?:/[0-9]{1,3})?))",
    re.IGNORECASE,
)
_MODIFIER = re.compile(rf"(?P<name>[a-z][a-z0-9_.-]*)=(?P<value>(?:{_NAME})?)", re.IGNORECASE)

_POLICIES = ("none", "quarantine", "reject")

_MAX_STRING_OCTETS = 255  # RFC 1035 §3.3: of one character-string in a TXT record

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
    modifiers: dict[str, str] = {}
    qualifiers: list[str] = []  # of the mechanisms that count, all of them up to "all"
    ends_in_all = False
    for term in filter(None, text.split(" ")[1:]):
        if found := _MODIFIER.fullmatch(term):
            name = found["name"].lower()
            if name in {"redirect", "exp"} and (name in modifiers or not found["value"]):
                return SPF(f"{quoted(term.encode('latin-1'))} is repeated or empty")
            modifiers[name] = found["value"]
        elif (found := _MECHANISM.fullmatch(term)) and _is_network(found["ip4"], 4) and _is_network(found["ip6"], 6):
            if not ends_in_all:
                qualifiers.append(found["qualifier"] or "+")
            ends_in_all = ends_in_all or bool(found["all"])
        else:
            return SPF(f"{quoted(term.encode('latin-1'))} is no valid term")
    redirect = "" if ends_in_all else modifiers.get("redirect", "")
    if "%" in redirect or not (ends_in_all or redirect):  # it depends on the message, or it is neutral (§4.7)
        return SPF(sends=True)
    sends = any(qualifier != "-" for qualifier in qualifiers)
    return SPF(sends=sends, passes_all=ends_in_all and qualifiers[-1] == "+", redirect=redirect)


def _is_network(text: str | None, version: int) -> bool:
    try:
        return text is None or ipaddress.ip_network(text, strict=False).version == version
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
        if equals:
            tags.setdefault(name.lower(), value)
    return tags


def dmarc_policy(tags: Mapping[str, str], *, of_subdomain: bool = False) -> str:
    """Return the policy for the record's own domain or for its existing subdomains: none, quarantine or reject."""
    own = tags.get("p", "none")
    policy = (tags.get("sp", own) if of_subdomain else own).lower()
    return policy if policy in _POLICIES else "none"


def dmarc_text(tags: Mapping[str, str]) -> str:
    """Return a record with these tags that asks for rejection, of subdomains too, and whose reports stay the same."""
    kept = {name: value for name, value in tags.items() if name not in {"v", "p", "sp", "np", "pct", "t"}}
    return "; ".join(f"{name}={value}" for name, value in {"v": "DMARC1", "p": "reject", **kept}.items())


def zone_txt(name: str, text: str) -> str:
    """Return the line of a zone file for a TXT record (RFC 1035 §5.1)."""
    size = _MAX_STRING_OCTETS
    strings = [text[start : start + size].translate(_ESCAPES) for start in range(0, len(text) or 1, size)]
    return f"{name}. IN TXT " + " ".join(f'"{string}"' for string in strings)
