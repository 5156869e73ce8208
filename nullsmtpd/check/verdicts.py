"""What a sender of mail experiences: one table from what a server answers, one from what is known of a domain.

The senders and their days are those of the README's table "What real senders do"; Exim's and Sendmail's are their
defaults for a message that is deferred (Exim's `retry` rule, `Timeout.queuereturn`).
"""

from collections.abc import Callable, Collection
from enum import Enum
from typing import NamedTuple

from nullsmtpd.check.outcome import NO_FAMILY, REFUSED, SILENCE, UNREACHABLE, Probe

__all__ = ["Answer", "Facts", "Verdict", "answer_of", "verdict_on"]

_FOR_DAYS = "every sender tries again for days (Exim and OpenSMTPD 4, Postfix and Sendmail 5, qmail 7)"
_PUBLISH = "publish a null MX, so that none of them tries"


class Answer(Enum):
    """What a sender takes from a server, and what it does then."""

    TAKES_MAIL = "an open port that accepts mail: senders deliver there"
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

_TO_MAIL = 2

#: RFC 7504 §3; any other 5xx there may be about the sender.
HOST_TAKES_NO_MAIL = "521"


def answer_of(seen: Probe) -> Answer:
    """Return what a sender takes from what was seen by a `probe` in mode `ANY`."""
    if not seen.codes and not seen.received:
        return _BY_ENDING.get(seen.ending, Answer.BROKEN)
    for place, code in enumerate(seen.codes[: _TO_MAIL + 1]):
        if code == HOST_TAKES_NO_MAIL and place == _TO_MAIL:
            return Answer.REFUSES_AT_MAIL
        if code[0] != "2" or place == _TO_MAIL:
            return _BY_REPLY.get((place, code[0]), Answer.BROKEN)
    return Answer.BROKEN


class Facts(NamedTuple):
    """What is known of a domain.

    ``hosts``: how many names a sender would look up the addresses of. ``is_known``: whether DNS told all of them, and
    their addresses. ``own``: what the domain's own addresses answer; ``tried``: what those answer that a sender would
    try.
    """

    is_known: bool
    exists: bool
    is_null_mx: bool
    hosts: int
    own: Collection[Answer]
    tried: Collection[Answer]


class Verdict(NamedTuple):
    """``is_good``: whether mail is refused and its author is told at once. ``words``: what a sender experiences."""

    name: str
    is_good: bool
    words: str


#: In the order of a sender: the first that applies counts.
_RULES: tuple[tuple[Callable[[Facts], bool], Verdict], ...] = (
    (
        lambda facts: not facts.exists,
        Verdict("no-domain", False, "there is no such domain: most senders give up at once"),
    ),
    (
        lambda facts: facts.is_null_mx and Answer.TAKES_MAIL in facts.own,
        Verdict(
            "null-mx-open-port",
            False,
            "immediate bounce from senders that heed the null MX; any other finds an open port that accepts mail",
        ),
    ),
    (
        lambda facts: facts.is_null_mx,
        Verdict(
            "null-mx",
            True,
            "immediate bounce: senders give up at once, without connecting; OpenSMTPD before 7.5 tries for 4 days",
        ),
    ),
    (
        lambda facts: not facts.tried and not facts.is_known,
        Verdict("dns-fails", False, f"DNS does not answer: {_FOR_DAYS}"),
    ),
    (
        lambda facts: not facts.tried and not facts.hosts,
        Verdict(
            "faulty-null-mx",
            False,
            "senders find no host, and may give up at once or try again: make it one MX, of preference 0",
        ),
    ),
    (
        lambda facts: not facts.tried,
        Verdict("no-address", False, f"senders find no address, and may give up at once or try again: {_PUBLISH}"),
    ),
    (
        lambda facts: Answer.TAKES_MAIL in facts.tried,
        Verdict("takes-mail", False, Answer.TAKES_MAIL.value),
    ),
    (
        lambda facts: not facts.is_known,
        Verdict("dns-fails-in-part", False, "DNS does not tell all of the addresses, and the others may take mail"),
    ),
    (
        lambda facts: len(set(facts.tried) - {Answer.UNKNOWN}) > 1,
        Verdict(
            "mixed",
            False,
            f"the addresses answer differently: what a sender does depends on which it asks first: {_PUBLISH}",
        ),
    ),
)


def verdict_on(facts: Facts) -> Verdict:
    """Return what becomes of mail for a domain."""
    for applies, verdict in _RULES:
        if applies(facts):
            return verdict
    answer = next(iter(set(facts.tried) - {Answer.UNKNOWN}), Answer.UNKNOWN)
    return Verdict(answer.name.lower().replace("_", "-"), answer is Answer.REFUSES_AT_MAIL, answer.value)
