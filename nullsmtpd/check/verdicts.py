"""What a sender of mail experiences: first from one server's behaviour, then from all that a domain has."""

import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from nullsmtpd.check.probe import NO_FAMILY, REFUSED, SILENCE, UNREACHABLE, Probe
from nullsmtpd.check.senders import SENDERS, Fate
from nullsmtpd.nullmx import MXAnswer

__all__ = ["BY_CODES", "BY_ENDING", "VERDICTS", "Verdict", "behaviour_of", "verdict_on"]


class Verdict(NamedTuple):
    """``is_good``: whether mail is refused and its author is told at once. ``words``: what a sender experiences."""

    name: str
    is_good: bool
    words: str


_SENDERS = [sender for sender in SENDERS if not sender.setting]


def _listed(names: Iterable[str]) -> str:
    """Return "A, B and C"."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _fates(kind: str) -> str:
    """Return which senders bounce a refusal of this kind at once, and which try again."""
    bouncing = _listed(sender.name for sender in _SENDERS if getattr(sender, kind) is Fate.BOUNCED)
    deferring = _listed(f"{one.name} ({one.days} days)" for one in _SENDERS if getattr(one, kind) is Fate.DEFERRED)
    return f"immediate bounce from {bouncing}; {deferring} try again"


_NO_TEXT = _listed(sender.name for sender in _SENDERS if not sender.shows_text)
_ONLY_FIRST = _listed(sender.name for sender in _SENDERS if sender.greeting != sender.greeting_again)
_REQUIRING_TLS = _listed(sender.name for sender in _SENDERS if sender.mail_requiring_tls is Fate.DEFERRED)
_FOR_DAYS = f"every sender tries again for days ({_listed(f'{sender.name} {sender.days}' for sender in _SENDERS)})"
_COULD_NOT_CONNECT = f"{_FOR_DAYS}, and then tells its author that it could not connect"
_NO_NULL_MX = _listed(
    f"{one.name} {one.null_mx_since and f'before {one.null_mx_since} '}({one.days} days)"
    for one in _SENDERS
    if one.null_mx_since or one.null_mx is Fate.DEFERRED
)

_WORDS = {
    # How one server behaves:
    "takes-mail": "an open port that replies 250 to MAIL: senders deliver their mail there",
    "refuses-at-mail": "immediate bounce: every sender gives up at once, with the text of the reply; only "
    f"those set to require TLS ({_REQUIRING_TLS}) try again",
    "refuses-this-sender": "a server that refused our empty sender, or requires TLS first: it may well accept "
    "the mail of others",
    "refuses-at-ehlo": _fates("ehlo"),
    "refuses-at-greeting": f"{_fates('greeting')}, and {_NO_TEXT} never shows the text; {_ONLY_FIRST} bounces "
    "the first message only, and defers others within minutes",
    "not-now": f"a server that refuses for now: {_FOR_DAYS}",
    "no-listener": f"nothing listens: {_COULD_NOT_CONNECT}",
    "unreachable": "nothing answers (if no host does, this network may filter outgoing port 25): " + _COULD_NOT_CONNECT,
    "not-public": "no address that can be reached on the Internet: senders fail, try again for days or reach "
    "themselves",
    "silent": f"a server that accepts connections and sends nothing: {_FOR_DAYS}",
    "broken": f"a server that does not complete the SMTP dialogue: {_FOR_DAYS}",
    "unknown": "unknown: no address can be reached from this host, which lacks that address family",
    # How several do, and what DNS has:
    "unknown-in-part": "some addresses cannot be reached from this host, and may accept mail; the others: ",
    "mixed": "the addresses differ: what a sender does depends on which it tries first",
    "left-out": "too many addresses to probe them all, and the others may accept mail",
    "no-domain": "there is no such domain: most senders give up at once",
    "no-address": "senders find no address, and may give up at once or try again",
    "dns-fails": f"DNS does not answer: {_FOR_DAYS}",
    "dns-fails-in-part": "DNS does not answer for all addresses, and the others may accept mail",
    "null-mx": f"immediate bounce: senders give up at once, without connecting; only {_NO_NULL_MX} try again",
    "null-mx-open-port": "immediate bounce from senders that heed the null MX; others find an open port that replies "
    "250 to MAIL, and deliver their mail there",
    "faulty-null-mx": "an invalid null MX: senders may give up at once, try again or try other hosts",
}

#: By name, of each behaviour of a server and of all that a domain has.
VERDICTS = {name: Verdict(name, name in {"null-mx", "refuses-at-mail"}, words) for name, words in _WORDS.items()}
_TAKES_MAIL, _REFUSES_AT_MAIL, _UNKNOWN = (VERDICTS[name] for name in ("takes-mail", "refuses-at-mail", "unknown"))

#: By the end of a connection without any octet; all others are broken.
BY_ENDING = {REFUSED: "no-listener", UNREACHABLE: "unreachable", NO_FAMILY: "unknown", SILENCE: "silent"}

#: By the codes of the greeting, of the reply to EHLO, or to HELO where that is 5xx (RFC 5321 §3.2), and to MAIL; all
#: others are broken. RFC 7504 §3: 521 is about the host; another 5xx may be about the sender.
BY_CODES = (
    ("5", "refuses-at-greeting"),
    ("2.. 5.. 5", "refuses-at-ehlo"),
    ("2.. (5.. )?2.. 521", "refuses-at-mail"),
    ("2.. (5.. )?2.. 5", "refuses-this-sender"),
    ("2.. (5.. )?2.. 2", "takes-mail"),
    ("(2.. (5.. )?(2.. )?)?4", "not-now"),
)


def behaviour_of(seen: Probe) -> Verdict:
    """Return how the server treats mail, from what was seen by a `probe` in mode `ANY`."""
    if not seen.received:
        return VERDICTS[BY_ENDING.get(seen.ending, "broken")]
    codes = " ".join(seen.codes)
    return VERDICTS[next((name for pattern, name in BY_CODES if re.match(pattern, codes)), "broken")]


def verdict_on(
    mx: MXAnswer, groups: Sequence[AbstractSet[Verdict]], *, is_known: bool = True, left_out: int = 0
) -> Verdict:
    """Return what becomes of mail for a domain that has the MX set ``mx``.

    ``groups``: how the servers behave that a sender would try, a set for each preference, the most preferred first; of
    a null MX those at the domain's own addresses. ``is_known``: whether DNS answered for all of them; ``left_out``: how
    many addresses were not probed.
    """
    everywhere = set().union(*groups)
    names = (
        ("null-mx-open-port", _TAKES_MAIL in everywhere and mx.is_null_mx),
        ("takes-mail", _TAKES_MAIL in everywhere),  # whatever the others do: spammers try them all
        ("faulty-null-mx", mx.is_invalid_null_mx),
        ("left-out", left_out),
        ("dns-fails", not (everywhere or is_known or mx.is_null_mx)),
        ("dns-fails-in-part", not is_known),
        ("null-mx", mx.is_null_mx),
        ("no-address", not everywhere),
    )
    if name := next((name for name, applies in names if applies), ""):
        return VERDICTS[name]
    if _UNKNOWN in everywhere and len(everywhere) > 1:
        verdict, others = VERDICTS["unknown-in-part"], _common([group - {_UNKNOWN} for group in groups])
        return verdict._replace(words=verdict.words + others.words)
    return _common(groups)


def _common(groups: Sequence[AbstractSet[Verdict]]) -> Verdict:
    """Return the behaviour that decides what a sender does, if there is one.

    Senders begin with the lowest preference (RFC 5321 §5.1) and do not go on after a 5xx to MAIL (§4.2.1).
    """
    first = next(filter(None, groups))
    everywhere = first if first == {_REFUSES_AT_MAIL} else set().union(*groups)
    return next(iter(everywhere)) if len(everywhere) == 1 else VERDICTS["mixed"]
