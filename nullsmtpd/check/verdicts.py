"""What a sender of mail experiences: first from one server's behaviour, then from all that a domain has."""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from nullsmtpd.check.outcome import NO_FAMILY, REFUSED, SILENCE, UNREACHABLE, Probe
from nullsmtpd.check.senders import SENDERS, Fate, Sender

if TYPE_CHECKING:
    from nullsmtpd.nullmx import MXAnswer

__all__ = ["Behaviour", "Verdict", "behaviour_of", "verdict_on"]

_SENDERS = [sender for sender in SENDERS if not sender.setting]


def _names(senders: Iterable[Sender], form: str = "{0.name}") -> str:
    names = [form.format(sender) for sender in senders]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _fates(kind: str) -> str:
    """Return which senders bounce a refusal of this kind at once, and which try again."""
    bouncing = [sender for sender in _SENDERS if getattr(sender, kind) is Fate.BOUNCED]
    deferring = [sender for sender in _SENDERS if getattr(sender, kind) is Fate.DEFERRED]
    return f"immediate bounce from {_names(bouncing)}; {_names(deferring, '{0.name} ({0.days} days)')} try again"


_FOR_DAYS = f"every sender tries again for days ({_names(_SENDERS, '{0.name} {0.days}')})"
_NO_TEXT = _names(sender for sender in _SENDERS if not sender.shows_text)
_ONLY_FIRST = _names(s for s in _SENDERS if (s.greeting, s.greeting_again) == (Fate.BOUNCED, Fate.DEFERRED))
_NO_TLS = _names(sender for sender in _SENDERS if sender.mail_requiring_tls is Fate.DEFERRED)
_OLD = " and ".join(f"{s.name} before {s.null_mx_since} tries for {s.days} days" for s in _SENDERS if s.null_mx_since)
_COULD_NOT_CONNECT = f"{_FOR_DAYS}, and then tells its author that it could not connect"


class Behaviour(Enum):
    """How a server treats mail; the value is what a sender experiences."""

    TAKES_MAIL = "an open port that replies 250 to MAIL: senders deliver their mail there"  # no recipient was given
    REFUSES_AT_MAIL = (
        "immediate bounce: every sender gives up at once, with the text of the reply; only those set to require TLS "
        f"({_NO_TLS}) try again"
    )
    REFUSES_THIS_SENDER = (
        "a server that refused our empty sender, or requires TLS first: it may well accept the mail of others"
    )
    REFUSES_AT_EHLO = _fates("ehlo")
    REFUSES_AT_GREETING = (
        f"{_fates('greeting')}, and {_NO_TEXT} never shows the text; {_ONLY_FIRST} bounces the first message only, and "
        "defers others within minutes"
    )
    NOT_NOW = f"a server that refuses for now: {_FOR_DAYS}"
    NO_LISTENER = f"nothing listens: {_COULD_NOT_CONNECT}"
    UNREACHABLE = f"nothing answers (if no host does, this network may filter outgoing port 25): {_COULD_NOT_CONNECT}"
    NOT_PUBLIC = "no address that can be reached on the Internet: senders fail, try again for days or reach themselves"
    SILENT = f"a server that accepts connections and sends nothing: {_FOR_DAYS}"
    BROKEN = f"a server that does not complete the SMTP dialogue: {_FOR_DAYS}"
    UNKNOWN = "unknown: no address can be reached from this host, which lacks that address family"


#: By the end of a connection without any octet; all others are `BROKEN`.
_BY_ENDING = {
    REFUSED: Behaviour.NO_LISTENER,
    UNREACHABLE: Behaviour.UNREACHABLE,
    NO_FAMILY: Behaviour.UNKNOWN,
    SILENCE: Behaviour.SILENT,
}

_GREETING, _EHLO, _MAIL = range(3)

#: By the last reply that a sender waits for and its first digit; all others are `BROKEN`.
_BY_REPLY = {
    (_GREETING, "5"): Behaviour.REFUSES_AT_GREETING,
    (_GREETING, "4"): Behaviour.NOT_NOW,
    (_EHLO, "5"): Behaviour.REFUSES_AT_EHLO,
    (_EHLO, "4"): Behaviour.NOT_NOW,
    (_MAIL, "5"): Behaviour.REFUSES_THIS_SENDER,
    (_MAIL, "4"): Behaviour.NOT_NOW,
    (_MAIL, "2"): Behaviour.TAKES_MAIL,
}

#: RFC 7504 §3; any other 5xx to MAIL may be about the sender.
_HOST_TAKES_NO_MAIL = "521"


def behaviour_of(seen: Probe) -> Behaviour:
    """Return how the server treats mail, from what was seen by a `probe` in mode `ANY`."""
    codes = seen.codes
    if not codes and not seen.received:
        return _BY_ENDING.get(seen.ending, Behaviour.BROKEN)
    if [code[0] for code in codes[:_MAIL]] == ["2", "5"]:  # EHLO is refused: HELO has the last word (RFC 5321 §3.2)
        del codes[_EHLO]
    for place, code in enumerate(codes[: _MAIL + 1]):
        if code == _HOST_TAKES_NO_MAIL and place == _MAIL:
            return Behaviour.REFUSES_AT_MAIL
        if code[0] != "2" or place == _MAIL:
            return _BY_REPLY.get((place, code[0]), Behaviour.BROKEN)
    return Behaviour.BROKEN


class Verdict(NamedTuple):
    """``is_good``: whether mail is refused and its author is told at once. ``words``: what a sender experiences."""

    name: str
    is_good: bool
    words: str


_NO_DOMAIN = Verdict("no-domain", False, "there is no such domain: most senders give up at once")
_NULL_MX = Verdict(
    "null-mx", True, f"immediate bounce: senders give up at once, without connecting; only {_OLD} instead"
)
_NULL_MX_OPEN_PORT = Verdict(
    "null-mx-open-port",
    False,
    "immediate bounce from senders that heed the null MX; others find an open port that replies 250 to MAIL, and "
    "deliver their mail there",
)
_FAULTY_NULL_MX = Verdict(
    "faulty-null-mx", False, "an invalid null MX: senders may give up at once, try again or try other hosts"
)
_NO_ADDRESS = Verdict("no-address", False, "senders find no address, and may give up at once or try again")
_DNS_FAILS = Verdict("dns-fails", False, f"DNS does not answer: {_FOR_DAYS}")
_DNS_FAILS_IN_PART = Verdict(
    "dns-fails-in-part", False, "DNS does not answer for all addresses, and the others may accept mail"
)
_LEFT_OUT = Verdict("left-out", False, "too many addresses to probe them all, and the others may accept mail")
_MIXED = Verdict("mixed", False, "the addresses differ: what a sender does depends on which it tries first")


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
    whether DNS answered for all of them; ``left_out``: how many addresses were not probed.
    """
    if mx is not None and not mx.exists:
        return _NO_DOMAIN
    if mx is not None and mx.is_null_mx:
        if Behaviour.TAKES_MAIL in own:
            return _NULL_MX_OPEN_PORT
        return _LEFT_OUT if left_out else _NULL_MX
    if any(Behaviour.TAKES_MAIL in group for group in groups):
        return _verdict_of(Behaviour.TAKES_MAIL)  # whatever the others do: spammers try them all
    if mx is not None and mx.is_faulty_null_mx:
        return _FAULTY_NULL_MX
    return _LEFT_OUT if left_out else _verdict_on_refusals(groups, is_known=is_known)


def _verdict_on_refusals(groups: Sequence[AbstractSet[Behaviour]], *, is_known: bool) -> Verdict:
    if not any(groups):
        return _NO_ADDRESS if is_known else _DNS_FAILS
    if not is_known:
        return _DNS_FAILS_IN_PART
    probed = [group - {Behaviour.UNKNOWN} for group in groups]
    if not any(probed):
        return _verdict_of(Behaviour.UNKNOWN)
    # Senders begin with the lowest preference (RFC 5321 §5.1) and do not go on after a 5xx to MAIL (§4.2.1).
    first = next(filter(None, probed))
    behaviours = list(first if first == {Behaviour.REFUSES_AT_MAIL} else set().union(*probed))
    verdict = _verdict_of(behaviours[0]) if len(behaviours) == 1 else _MIXED
    if probed == list(groups):
        return verdict
    words = f"some addresses cannot be reached from this host, and may accept mail; the others: {verdict.words}"
    return Verdict("unknown-in-part", False, words)


def _verdict_of(behaviour: Behaviour) -> Verdict:
    name = behaviour.name.lower().replace("_", "-")
    return Verdict(name, behaviour is Behaviour.REFUSES_AT_MAIL, behaviour.value)
