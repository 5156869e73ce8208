"""Which fixed octets does a client get?

Replies are built once, at start, from the operator's text alone. Nothing that a client sends becomes part of a reply
(RFC 7504 §7: a fixed string leaves an attacker nothing to work with).
"""

from collections.abc import Mapping
from typing import NamedTuple

__all__ = [
    "DEFAULT_TEXT",
    "MAX_REPLY_OCTETS",
    "MODES",
    "REPLY",
    "Dialogue",
    "mail_dialogue",
    "reply_line",
    "session_dialogue",
]

MODES = ("close", "session", "mail")

#: RFC 5321 §4.5.3.1.5: a reply line, code and CRLF included, has at most 512 octets.
MAX_REPLY_OCTETS = 512

#: RFC 7504 §3 shows this text with the code 521.
DEFAULT_TEXT = "Host does not accept mail"

#: RFC 6531 §3.1 requires a server with SMTPUTF8 to offer 8BITMIME; without SMTPUTF8 senders blame the address of an
#: internationalized message. ENHANCEDSTATUSCODES: RFC 2034. Nothing else is offered, as no message is ever taken.
EXTENSIONS = ("8BITMIME", "ENHANCEDSTATUSCODES", "SMTPUTF8")


class Dialogue(NamedTuple):
    """The fixed replies of a mode with a dialogue.

    ``replies``: by verb in capitals; ``default``: to every other command. ``quit`` is the same object that ``replies``
    has for QUIT. ``timeout``, ``too_many`` and ``shutdown`` end a session from the server's side (RFC 5321 §3.8: 421).
    """

    greeting: bytes
    replies: Mapping[bytes, bytes]
    default: bytes
    quit: bytes
    timeout: bytes
    too_many: bytes
    shutdown: bytes


def reply_line(text: str, code: str = "521") -> bytes:
    """Return ``CODE TEXT CRLF`` as octets.

    ``text``: one line of printable ASCII (``textstring`` of RFC 5321 §4.2, without the tab), 1 to 506 characters for a
    code of three digits. Raises `ValueError` with what is wrong, to be read after the value.
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
    """Return the replies of mode ``session``: RFC 7504 §3 to the letter, 521 to every command except QUIT.

    Raises `ValueError` as `reply_line` does.
    """
    refusal = reply_line(text)
    closing = reply_line(f"{hostname} closing connection", "221")
    return Dialogue(refusal, {b"QUIT": closing}, refusal, closing, **_endings(hostname))


def mail_dialogue(text: str, hostname: str) -> Dialogue:
    """Return the replies of mode ``mail``: 220 as greeting, 521 5.3.2 to MAIL (RFC 3463, RFC 7504 §6).

    RFC 7504 §3 allows 521 "in other situations" than connection opening. Every reply after EHLO's has an enhanced code
    (RFC 2034 §4). Raises `ValueError` as `reply_line` does.
    """
    closing = reply_line(f"{hostname} closing connection", "221 2.0.0")
    done = reply_line("OK", "250 2.0.0")
    ehlo = [reply_line(line, "250") for line in (hostname, *EXTENSIONS)]
    replies = {
        b"EHLO": b"".join([*(line.replace(b" ", b"-", 1) for line in ehlo[:-1]), ehlo[-1]]),  # RFC 5321 §4.2.1
        b"HELO": ehlo[0],
        b"NOOP": done,
        b"RSET": done,
        b"QUIT": closing,
    }
    greeting = reply_line(f"{hostname} ESMTP", "220")
    return Dialogue(greeting, replies, reply_line(text, "521 5.3.2"), closing, **_endings(hostname))


def _endings(hostname: str) -> dict[str, bytes]:
    return {
        "timeout": reply_line(f"{hostname} Timeout", "421 4.4.2"),
        "too_many": reply_line(f"{hostname} Too many commands", "421 4.7.0"),
        "shutdown": reply_line(f"{hostname} Service shutting down", "421 4.3.2"),
    }


#: The default reply of mode ``close``, ready to send.
REPLY = reply_line(DEFAULT_TEXT)
