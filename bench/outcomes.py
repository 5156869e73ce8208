"""What a client sends and has to be answered, and how its connection ended."""

import functools
from enum import Enum, StrEnum

from nullsmtpd.check.dialogue import parse_replies

#: The reply of nullsmtpd by default, and of every server that is measured.
LINE = b"521 Host does not accept mail\r\n"

Script = tuple[tuple[bytes, bytes], ...]  # what is sent before each reply, and what the reply begins with

#: One line, for a client that sends nothing.
GREETING: Script = ((b"", b"521"),)

#: The least that a sender sends to learn that its mail is not accepted. Whether the greeting and EHLO are refused
#: already is the server's choice; MAIL is refused, and QUIT is answered (RFC 5321 §4.1.1.10).
DIALOGUE: Script = (
    (b"", b""),
    (b"EHLO bench.example\r\n", b""),
    (b"MAIL FROM:<>\r\n", b"521"),
    (b"QUIT\r\n", b"221"),
)


class Outcome(StrEnum):
    """What the client read. Each connection has exactly one."""

    ANSWERED = "answered, FIN"
    ANSWERED_RESET = "answered, RST"
    INCOMPLETE = "incomplete, FIN"
    INCOMPLETE_RESET = "incomplete, RST"
    WRONG = "wrong octets"
    REFUSED = "refused"
    TIMEOUT = "timed out"
    FAILED = "not started"


#: The outcomes of a client that has read every reply; any other is a lost line.
ANSWERED = frozenset({Outcome.ANSWERED, Outcome.ANSWERED_RESET})


class Ending(Enum):
    """What ended the connection: the outcome of a client that has read every reply, and of one that has not."""

    FIN = (Outcome.ANSWERED, Outcome.INCOMPLETE)
    RESET = (Outcome.ANSWERED_RESET, Outcome.INCOMPLETE_RESET)
    REFUSED = (Outcome.REFUSED, Outcome.REFUSED)
    TIMEOUT = (Outcome.TIMEOUT, Outcome.TIMEOUT)


@functools.lru_cache(256)  # a server gives most clients the same
def is_whole(received: bytes) -> bool:
    """Tell whether this is one whole reply, of one line or more, with nothing after it."""
    replies, rest, _ = parse_replies(received)
    return len(replies) == 1 and not rest


@functools.lru_cache(256)
def classify(replies: tuple[bytes, ...], rest: bytes, ending: Ending, script: Script) -> Outcome:
    """Return the outcome of a connection that gave whole ``replies``, then ``rest``, and ended in ``ending``.

    A reply cut off before its last CRLF is incomplete; octets that no reply of the script begins with are wrong,
    however the connection ended.
    """
    received = (*replies, rest) if rest else replies
    more, _, is_no_reply = parse_replies(rest)
    differ = any(one[: len(due)] != due[: len(one)] for one, (_, due) in zip(received, script, strict=False))
    if more or is_no_reply or differ or len(received) > len(script):
        return Outcome.WRONG
    whole, incomplete = ending.value
    return whole if len(replies) == len(script) else incomplete
