"""How one connection ended, as its client saw it."""

import re
from collections.abc import Sequence
from enum import StrEnum

__all__ = ["ANSWERED", "Ending", "Outcome", "classify", "classify_dialogue", "is_whole"]


class Ending(StrEnum):
    """What ended the connection."""

    FIN = "FIN"
    RESET = "RST"
    REFUSED = "refused"
    TIMEOUT = "timeout"


class Outcome(StrEnum):
    """What the client got out of it. Each connection has exactly one."""

    LINE_FIN = "whole line + FIN"
    LINE_RESET = "whole line + RST"
    EOF = "EOF without line"
    RESET = "RST without line"
    WRONG = "wrong octets"
    REFUSED = "refused"
    TIMEOUT = "timed out"
    FAILED = "not started"

    @property
    def of_dialogue(self) -> str:
        """Return what to call it where the unit is a dialogue: "whole dialogue + FIN", "EOF within the dialogue"."""
        return self.value.replace("whole line", "whole dialogue").replace("without line", "within the dialogue")


#: The outcomes of a client that has read its reply.
ANSWERED = frozenset({Outcome.LINE_FIN, Outcome.LINE_RESET})

_WITH_LINE = {Ending.FIN: Outcome.LINE_FIN, Ending.RESET: Outcome.LINE_RESET}
_WITHOUT_LINE = {
    Ending.FIN: Outcome.EOF,
    Ending.RESET: Outcome.RESET,
    Ending.REFUSED: Outcome.REFUSED,
    Ending.TIMEOUT: Outcome.TIMEOUT,
}


# RFC 5321 §4.2.1: every line of a reply carries the same code, and all but the last have a hyphen after it.
_WHOLE = re.compile(rb"(\d{3})(?:-[^\r\n]*\r\n\1)*(?: [^\r\n]*)?\r\n")
_BEGINNING = re.compile(rb"(?:\d{3}-[^\r\n]*\r\n)*(?:\d{0,3}|\d{3}\r|\d{3}[ -][^\r\n]*\r?)")


def classify(received: bytes, ending: Ending, expect: bytes) -> Outcome:
    """Return the outcome of a connection that gave ``received`` and then ended in ``ending``.

    A whole reply is what RFC 5321 §4.2.1 says, begins with ``expect``, and has nothing after it. A reply cut off before
    its last CRLF is no line. Octets that no such reply begins with are wrong, however the connection ended.
    """
    started_right = received.startswith(expect[: len(received)])
    if started_right and len(received) >= len(expect) and _WHOLE.fullmatch(received):
        return _WITH_LINE.get(ending, Outcome.TIMEOUT)
    if started_right and _BEGINNING.fullmatch(received):
        return _WITHOUT_LINE[ending]
    return Outcome.WRONG


def is_whole(received: bytes) -> bool:
    """Tell whether this is one whole reply, of one line or more, with nothing after it."""
    return _WHOLE.fullmatch(received) is not None


def classify_dialogue(replies: Sequence[bytes], rest: bytes, ending: Ending, expect: Sequence[bytes]) -> Outcome:
    """Return the outcome of a dialogue that gave ``replies``, whole ones, then ``rest``, and ended in ``ending``.

    ``expect`` has the beginning of every reply, the greeting's first. A dialogue is whole after the last of them; each
    reply is judged as `classify` does.
    """
    for reply, beginning in zip(replies, expect, strict=False):
        if not reply.startswith(beginning):
            return Outcome.WRONG
    if len(replies) < len(expect):
        return classify(rest, ending, expect[len(replies)])
    return Outcome.WRONG if rest else _WITH_LINE.get(ending, Outcome.TIMEOUT)
