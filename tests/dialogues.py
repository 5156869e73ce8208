"""What clients send to the modes with a dialogue, in any pieces, and the replies to it."""

import itertools

from hypothesis import strategies as st

from nullsmtpd.responder.dialogues import Dialogue, mail_dialogue, session_dialogue
from nullsmtpd.responder.session import MAX_COMMANDS

__all__ = ["CLOSING", "CUTS", "EHLO", "GREETING", "HOST", "LINES", "MAIL", "SESSION", "in_chunks", "replies_to"]

HOST = "mx.example.org"
MAIL = mail_dialogue("Host does not accept mail", HOST)
SESSION = session_dialogue("Host does not accept mail", HOST)

# The replies of mode mail, octet by octet.
GREETING = b"220 mx.example.org ESMTP\r\n"
EHLO = b"250-mx.example.org\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250 SMTPUTF8\r\n"
CLOSING = b"221 2.0.0 mx.example.org closing connection\r\n"

_WORDS = st.sampled_from(
    [
        *(b"QUIT", b"quit", b"EHLO", b"helo", b"NoOp", b"RSET", b"MAIL", b"RCPT", b"DATA", b"STARTTLS"),
        *(b"NOOPS", b"EHL", b""),
    ]
)
_ENDS = st.sampled_from([b"\r\n", b"\n", b"\r", b"\r\r\n", b" \r\n", b"\t x\r\n", b"\x00\r\n", b" a b\r\n", b""])

#: Pieces of input: lines of every kind, parts of lines, lines that are too long, and too many of them.
LINES = st.one_of(
    st.tuples(_WORDS, _ENDS).map(b"".join),
    st.binary(max_size=20),
    st.integers(500, 530).map(lambda size: b"NOOP " + b"x" * size + b"\r\n"),
    st.integers(1, 200).map(lambda count: b"NOOP\r\n" * count),
)

#: Where to cut such input into segments.
CUTS = st.lists(st.integers(0, 2000), max_size=12)


def in_chunks(sent: bytes, cuts: list[int]) -> list[bytes]:
    """Return the input, cut at these places."""
    marks = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    return [sent[begin:end] for begin, end in itertools.pairwise(marks)]


def replies_to(dialogue: Dialogue, sent: bytes) -> bytes:
    """Return all that a client receives which sends this: a function of the whole lines alone (RFC 5321 §4.1.1)."""
    received = dialogue.greeting
    for number, line in enumerate(sent.split(b"\n")[:-1], 1):
        words = line.removesuffix(b"\r").replace(b"\t", b" ").split(b" ")
        is_known = len(line) + 1 <= 512 and len(words[0]) == 4
        reply = dialogue.replies.get(words[0].upper(), dialogue.default) if is_known else dialogue.default
        received += reply
        if reply == dialogue.quit:
            return received
        if number == MAX_COMMANDS:
            return received + dialogue.too_many
    return received
