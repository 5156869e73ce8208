"""Which fixed octets does a client get?

Replies are built once, at start, from the operator's text alone. Nothing that a client sends becomes part of a reply
(RFC 7504 §7: a fixed string leaves an attacker nothing to work with).
"""

__all__ = ["DEFAULT_TEXT", "MAX_REPLY_OCTETS", "MODES", "REPLY", "reply_line"]

MODES = ("close", "session", "mail")

#: RFC 5321 §4.5.3.1.5: a reply line, code and CRLF included, has at most 512 octets.
MAX_REPLY_OCTETS = 512

#: RFC 7504 §3 shows this text with the code 521.
DEFAULT_TEXT = "Host does not accept mail"


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


#: The default reply of mode ``close``, ready to send.
REPLY = reply_line(DEFAULT_TEXT)
