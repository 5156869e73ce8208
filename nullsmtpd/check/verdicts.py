"""What a sender of mail experiences: first what it takes from a server's answer, then from all that a domain has.

The senders and their days are those of the README's table "What real senders do"; Exim's and Sendmail's are their
defaults for a message that is deferred (Exim's `retry` rule, `Timeout.queuereturn`).
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from nullsmtpd.check.outcome import NO_FAMILY, REFUSED, SILENCE, UNREACHABLE, Probe

if TYPE_CHECKING:
    from nullsmtpd.nullmx import MXAnswer

__all__ = ["Answer", "Verdict", "answer_of", "verdict_on"]

_FOR_DAYS = "every sender tries again for days (Exim and OpenSMTPD 4, Postfix and Sendmail 5, qmail 7)"
_PUBLISH = "publish a null MX, so that none of them tries"


class Answer(Enum):
    """What a sender takes from a server, and what it does then."""

    TAKES_MAIL = "an open port that says 250 to MAIL: senders hand their mail over there"  # no recipient was asked
    REFUSES_AT_MAIL = "immediate bounce: every sender gives up at once, with the text of the reply"
    REFUSES_THIS_SENDER = (
        "a server that refused our empty sender, or wants TLS first: it may well take the mail of others"
    )
    REFUSES_AT_GREETING = (
        "immediate bounce from Exim, Sendmail and programs without a queue; Postfix (5 days), OpenSMTPD (4) and qmail "
        f"(7) try again, and do not show the text: {_PUBLISH}"
    )
    NOT_NOW = f"a server that asks for another try: {_FOR_DAYS}"
    NO_LISTENER = f"nothing listens: {_FOR_DAYS}, and then tells its author that it could not connect"
    UNREACHABLE = f"nothing answers: {_FOR_DAYS}, and then tells its author that it could not connect"
    SILENT = f"a server that accepts connections and says nothing: {_FOR_DAYS}"
    BROKEN = f"a server that does not speak SMTP to the end: {_FOR_DAYS}"
    UNKNOWN = "unknown: no address can be asked from here, as this host lacks that kind of address"


#: What the end of a connection tells when there was no whole reply; all else without one is `BROKEN`.
_BY_ENDING = {
    REFUSED: Answer.NO_LISTENER,
    UNREACHABLE: Answer.UNREACHABLE,
    NO_FAMILY: Answer.UNKNOWN,
    SILENCE: Answer.SILENT,
}

#: What the last reply that a sender waits for tells, by its place and its first digit; all else is `BROKEN`. A 5xx to
#: EHLO and hanging up is among that: senders defer it.
_BY_REPLY = {
    (0, "5"): Answer.REFUSES_AT_GREETING,
    (0, "4"): Answer.NOT_NOW,
    (1, "4"): Answer.NOT_NOW,
    (2, "5"): Answer.REFUSES_THIS_SENDER,
    (2, "4"): Answer.NOT_NOW,
    (2, "2"): Answer.TAKES_MAIL,
}

_TO_EHLO, _TO_MAIL = 1, 2

#: RFC 7504 §3; any other 5xx there may be about the sender.
HOST_TAKES_NO_MAIL = "521"


def answer_of(seen: Probe) -> Answer:
    """Return what a sender takes from what was seen by a `probe` in mode `ANY`."""
    if not seen.codes and not seen.received:
        return _BY_ENDING.get(seen.ending, Answer.BROKEN)
    for place, code in enumerate(_without_ehlo_refused(seen.codes)[: _TO_MAIL + 1]):
        if code == HOST_TAKES_NO_MAIL and place == _TO_MAIL:
            return Answer.REFUSES_AT_MAIL
        if code[0] != "2" or place == _TO_MAIL:
            return _BY_REPLY.get((place, code[0]), Answer.BROKEN)
    return Answer.BROKEN


def _without_ehlo_refused(codes: list[str]) -> list[str]:
    """Leave a 5xx to EHLO out when HELO, said then, has its own reply (RFC 5321 §3.2)."""
    is_refused = [code[0] for code in codes[:_TO_MAIL]] == ["2", "5"] and codes[_TO_MAIL:]
    return codes[:_TO_EHLO] + codes[_TO_MAIL:] if is_refused else codes


class Verdict(NamedTuple):
    """``is_good``: whether mail is refused and its author is told at once. ``words``: what a sender experiences."""

    name: str
    is_good: bool
    words: str


_NO_DOMAIN = Verdict("no-domain", False, "there is no such domain: most senders give up at once")
_NULL_MX_OPEN_PORT = Verdict(
    "null-mx-open-port",
    False,
    "immediate bounce from senders that heed the null MX; any other finds an open port that says 250 to MAIL, and "
    "hands its mail over there",
)
_NULL_MX = Verdict(
    "null-mx",
    True,
    "immediate bounce: senders give up at once, without connecting; OpenSMTPD before 7.5 tries for 4 days",
)
_FAULTY_NULL_MX = Verdict(
    "faulty-null-mx",
    False,
    "what is nearly a null MX: senders may give up at once, try again or try other hosts: make it one MX, of "
    "preference 0",
)
_NO_ADDRESS = Verdict("no-address", False, f"senders find no address, and may give up at once or try again: {_PUBLISH}")
_DNS_FAILS = Verdict("dns-fails", False, f"DNS does not answer: {_FOR_DAYS}")
_DNS_FAILS_IN_PART = Verdict(
    "dns-fails-in-part", False, "DNS does not tell all of the addresses, and the others may take mail"
)
_LEFT_OUT = Verdict("left-out", False, "too many addresses to ask them all, and the others may take mail")
_MIXED = Verdict(
    "mixed",
    False,
    f"the addresses answer differently: what a sender does depends on which it asks first: {_PUBLISH}",
)


def verdict_on(
    mx: "MXAnswer | None",
    own: AbstractSet[Answer],
    groups: Sequence[AbstractSet[Answer]],
    *,
    is_known: bool = True,
    left_out: int = 0,
) -> Verdict:
    """Return what becomes of mail for a domain.

    ``mx``: its MX set, `None` when DNS does not tell. ``own``: what the domain's own addresses answer; ``groups``: what
    those answer that a sender would try, a set for each preference, the most preferred first. ``is_known``: whether DNS
    told all of these; ``left_out``: how many addresses were not asked.
    """
    if mx is not None and not mx.exists:
        return _NO_DOMAIN
    if mx is not None and mx.is_null_mx:
        return _verdict_behind_null_mx(own, left_out)
    if any(Answer.TAKES_MAIL in group for group in groups):
        return _verdict_of(Answer.TAKES_MAIL)  # whatever the others do: spammers try them all
    if mx is not None and mx.is_faulty_null_mx:
        return _FAULTY_NULL_MX
    return _LEFT_OUT if left_out else _verdict_without_taker(groups, is_known=is_known)


def _verdict_behind_null_mx(own: AbstractSet[Answer], left_out: int) -> Verdict:
    if Answer.TAKES_MAIL in own:
        return _NULL_MX_OPEN_PORT
    return _LEFT_OUT if left_out else _NULL_MX


def _verdict_without_taker(groups: Sequence[AbstractSet[Answer]], *, is_known: bool) -> Verdict:
    if not any(groups):
        return _NO_ADDRESS if is_known else _DNS_FAILS
    if not is_known:
        return _DNS_FAILS_IN_PART
    asked = [group - {Answer.UNKNOWN} for group in groups]
    if not any(asked):
        return _verdict_of(Answer.UNKNOWN)
    verdict = _verdict_on_answers(asked)
    if asked == list(groups):
        return verdict
    words = f"not all addresses can be asked from here, and those may take mail; the others: {verdict.words}"
    return Verdict("unknown-in-part", False, words)


def _verdict_on_answers(groups: Sequence[AbstractSet[Answer]]) -> Verdict:
    """Go by all addresses, but not by what follows a refusal at MAIL.

    Senders begin with the lowest preference (RFC 5321 §5.1), and a 5xx is for good (§4.2.1): none of them goes on.
    """
    first = next(filter(None, groups))
    answers = list(first if first == {Answer.REFUSES_AT_MAIL} else set().union(*groups))
    return _verdict_of(answers[0]) if len(answers) == 1 else _MIXED


def _verdict_of(answer: Answer) -> Verdict:
    return Verdict(answer.name.lower().replace("_", "-"), answer is Answer.REFUSES_AT_MAIL, answer.value)
