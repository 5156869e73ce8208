"""Which fixed replies has each mode with a dialogue?"""

from collections.abc import Mapping
from typing import NamedTuple

from nullsmtpd.responder.replies import reply_line

__all__ = ["Dialogue", "mail_dialogue", "session_dialogue"]

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
