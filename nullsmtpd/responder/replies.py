"""What is said: the fixed reply lines.

A reply is made once, at start, from the operator's text alone. Nothing that a client sends ever becomes part of one
(RFC 7504 §7: a fixed string leaves an attacker nothing to work with).
"""

from collections.abc import Mapping
from typing import NamedTuple

__all__ = [
    "DEFAULT_TEXT",
    "MAX_REPLY_OCTETS",
    "REPLY",
    "Dialogue",
    "mail_dialogue",
    "reply_line",
    "session_dialogue",
]

#: RFC 5321 §4.5.3.1.5: a reply line, code and CRLF included, is at most 512 octets.
MAX_REPLY_OCTETS = 512

#: RFC 7504 §3 shows this text with the code 521.
DEFAULT_TEXT = "Host does not accept mail"


class Dialogue(NamedTuple):
    """The fixed replies of a mode: what is said to a connection, to each verb, to all else, and at the end."""

    greeting: bytes
    replies: Mapping[bytes, bytes]
    otherwise: bytes
    goodbye: bytes  # to QUIT, and then the connection is closed; the very object that `replies` has
    too_late: bytes
    enough: bytes
    closing: bytes


def reply_line(text: str, code: str = "521") -> bytes:
    """Return ``CODE TEXT CRLF`` as octets.

    ``text`` is one line of printable ASCII (RFC 5321 §4.2, ``textstring``, without the tab), 1 to 506 characters for a
    code of three digits. Raises `ValueError`, which says what is wrong with it.
    """
    if not text:
        raise ValueError("is empty; give one line of printable ASCII")
    for position, character in enumerate(text, 1):
        if not " " <= character <= "~":
            raise ValueError(f"has {character!a} at character {position}; give one line of printable ASCII")
    room = MAX_REPLY_OCTETS - len(f"{code} \r\n")
    if len(text) > room:
        raise ValueError(f"is {len(text)} characters long; at most {room} fit a reply of {MAX_REPLY_OCTETS} octets")
    return f"{code} {text}\r\n".encode("ascii")


def session_dialogue(text: str, hostname: str) -> Dialogue:
    """Return the replies of a host that says 521 to everything but QUIT, to the letter of RFC 7504 §3.

    Raises `ValueError` as `reply_line` does.
    """
    refusal = reply_line(text)
    goodbye = _goodbye(hostname)
    return Dialogue(refusal, {b"QUIT": goodbye}, refusal, goodbye, **_endings(hostname))


def mail_dialogue(text: str, hostname: str) -> Dialogue:
    """Return the replies of a host that refuses at MAIL, with the code 5.3.2 (RFC 3463, RFC 7504 §6).

    RFC 7504 §3 allows 521 "in other situations" than connection opening; EHLO offers no extension. Raises `ValueError`
    as `reply_line` does.
    """
    refusal = reply_line(text, "521 5.3.2")
    goodbye = _goodbye(hostname)
    hello, done = reply_line(hostname, "250"), reply_line("OK", "250")
    replies = {b"EHLO": hello, b"HELO": hello, b"NOOP": done, b"RSET": done, b"QUIT": goodbye}
    return Dialogue(reply_line(f"{hostname} ESMTP", "220"), replies, refusal, goodbye, **_endings(hostname))


def _goodbye(hostname: str) -> bytes:
    return reply_line(f"{hostname} closing connection", "221")


def _endings(hostname: str) -> dict[str, bytes]:
    return {
        "too_late": reply_line(f"{hostname} waited long enough, closing connection", "421"),
        "enough": reply_line(f"{hostname} heard enough commands, closing connection", "421"),
        "closing": reply_line(f"{hostname} shuts down, closing connection", "421"),
    }


#: The default reply, ready to send.
REPLY = reply_line(DEFAULT_TEXT)
