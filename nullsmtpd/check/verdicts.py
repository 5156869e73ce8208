"""What a sender of mail experiences: first from one server's behaviour, then from all that a domain has."""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from nullsmtpd.check.probe import NO_FAMILY, REFUSED, SILENCE, UNREACHABLE, Probe
from nullsmtpd.check.senders import SENDERS, Fate

if TYPE_CHECKING:
    from nullsmtpd.nullmx import MXAnswer

__all__ = ["Behaviour", "Verdict", "behaviour_of", "verdict_on"]


class Behaviour(StrEnum):
    """How a server treats mail."""

    TAKES_MAIL = "takes-mail"
    REFUSES_AT_MAIL = "refuses-at-mail"
    REFUSES_THIS_SENDER = "refuses-this-sender"
    REFUSES_AT_EHLO = "refuses-at-ehlo"
    REFUSES_AT_GREETING = "refuses-at-greeting"
    NOT_NOW = "not-now"
    NO_LISTENER = "no-listener"
    UNREACHABLE = "unreachable"
    NOT_PUBLIC = "not-public"
    SILENT = "silent"
    BROKEN = "broken"
    UNKNOWN = "unknown"


#: By the end of a connection without any octet; all others are `BROKEN`.
_BY_ENDING = {
    REFUSED: Behaviour.NO_LISTENER,
    UNREACHABLE: Behaviour.UNREACHABLE,
    NO_FAMILY: Behaviour.UNKNOWN,
    SILENCE: Behaviour.SILENT,
}

#: By the last reply that a sender waits for (0: the greeting, 1: to EHLO or HELO, 2: to MAIL) and its code or the first
#: digit of that; all others are `BROKEN`. RFC 7504 §3: 521 is about the host; another 5xx may be about the sender.
_BY_REPLY = {
    (0, "5"): Behaviour.REFUSES_AT_GREETING,
    (0, "4"): Behaviour.NOT_NOW,
    (1, "5"): Behaviour.REFUSES_AT_EHLO,
    (1, "4"): Behaviour.NOT_NOW,
    (2, "521"): Behaviour.REFUSES_AT_MAIL,
    (2, "5"): Behaviour.REFUSES_THIS_SENDER,
    (2, "4"): Behaviour.NOT_NOW,
    (2, "2"): Behaviour.TAKES_MAIL,
}


def behaviour_of(seen: Probe) -> Behaviour:
    """Return how the server treats mail, from what was seen by a `probe` in mode `ANY`."""
    codes = seen.codes
    if not codes and not seen.received:
        return _BY_ENDING.get(seen.ending, Behaviour.BROKEN)
    if [code[0] for code in codes[:2]] == ["2", "5"]:
        del codes[1]  # EHLO was refused, and HELO sent instead (RFC 5321 §3.2)
    for place, code in enumerate(codes):
        if code[0] != "2" or (place, "2") in _BY_REPLY:
            return _BY_REPLY.get((place, code)) or _BY_REPLY.get((place, code[0]), Behaviour.BROKEN)
    return Behaviour.BROKEN


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
    f"{sender.name}{sender.before_null_mx} ({sender.days} days)"
    for sender in _SENDERS
    if sender.null_mx_since or sender.null_mx is Fate.DEFERRED
)

#: What a sender experiences, by the name of the verdict: of each behaviour, and of domains.
_WORDS = {
    Behaviour.TAKES_MAIL: "an open port that replies 250 to MAIL: senders deliver their mail there",
    Behaviour.REFUSES_AT_MAIL: "immediate bounce: every sender gives up at once, with the text of the reply; only "
    f"those set to require TLS ({_REQUIRING_TLS}) try again",
    Behaviour.REFUSES_THIS_SENDER: "a server that refused our empty sender, or requires TLS first: it may well accept "
    "the mail of others",
    Behaviour.REFUSES_AT_EHLO: _fates("ehlo"),
    Behaviour.REFUSES_AT_GREETING: f"{_fates('greeting')}, and {_NO_TEXT} never shows the text; {_ONLY_FIRST} bounces "
    "the first message only, and defers others within minutes",
    Behaviour.NOT_NOW: f"a server that refuses for now: {_FOR_DAYS}",
    Behaviour.NO_LISTENER: f"nothing listens: {_COULD_NOT_CONNECT}",
    Behaviour.UNREACHABLE: "nothing answers (if no host does, this network may filter outgoing port 25): "
    + _COULD_NOT_CONNECT,
    Behaviour.NOT_PUBLIC: "no address that can be reached on the Internet: senders fail, try again for days or reach "
    "themselves",
    Behaviour.SILENT: f"a server that accepts connections and sends nothing: {_FOR_DAYS}",
    Behaviour.BROKEN: f"a server that does not complete the SMTP dialogue: {_FOR_DAYS}",
    Behaviour.UNKNOWN: "unknown: no address can be reached from this host, which lacks that address family",
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


class Verdict(NamedTuple):
    """``is_good``: whether mail is refused and its author is told at once. ``words``: what a sender experiences."""

    name: str
    is_good: bool
    words: str


def verdict_on(
    mx: "MXAnswer | None",
    own: AbstractSet[Behaviour],
    groups: Sequence[AbstractSet[Behaviour]],
    *,
    is_known: bool = True,
    left_out: int = 0,
) -> Verdict:
    """Return what becomes of mail for a domain.

    ``mx``: its MX set, `None` when DNS does not answer. ``own``: how the servers at the domain's own addresses behave;
    ``groups``: those that a sender would try, a set for each preference, the most preferred first. ``is_known``:
    whether DNS answered for all of them, or with a null MX for the own; ``left_out``: how many addresses were not
    probed.
    """
    everywhere = set().union(*groups)
    is_null_mx = mx is not None and mx.is_null_mx
    unknowns = {Behaviour.UNKNOWN} & everywhere
    names = (
        ("no-domain", mx is not None and not mx.exists),
        ("null-mx-open-port", is_null_mx and Behaviour.TAKES_MAIL in own),
        ("left-out", is_null_mx and left_out),
        ("dns-fails-in-part", is_null_mx and not is_known),
        ("null-mx", is_null_mx),
        (Behaviour.TAKES_MAIL, Behaviour.TAKES_MAIL in everywhere),  # whatever the others do: spammers try them all
        ("faulty-null-mx", mx is not None and mx.is_invalid_null_mx),
        ("left-out", left_out),
        ("no-address", not everywhere and is_known),
        ("dns-fails", not everywhere),
        ("dns-fails-in-part", not is_known),
        ("unknown-in-part", unknowns and everywhere != unknowns),
    )
    name = str(next((name for name, applies in names if applies), "") or _common(groups))
    words = _WORDS[name]
    if name == "unknown-in-part":
        words += _WORDS[_common([group - unknowns for group in groups])]
    return Verdict(name, name in {"null-mx", Behaviour.REFUSES_AT_MAIL}, words)


def _common(groups: Sequence[AbstractSet[Behaviour]]) -> str:
    """Return the behaviour that decides what a sender does, if there is one.

    Senders begin with the lowest preference (RFC 5321 §5.1) and do not go on after a 5xx to MAIL (§4.2.1).
    """
    first = next(filter(None, groups))
    behaviours = list(first if first == {Behaviour.REFUSES_AT_MAIL} else set().union(*groups))
    return behaviours[0] if len(behaviours) == 1 else "mixed"
