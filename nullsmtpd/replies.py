"""What is said: the fixed reply lines.

A reply is made once, at start, from the operator's text alone. Nothing that a client sends ever becomes part of one
(RFC 7504 §7: a fixed string leaves an attacker nothing to work with).
"""

__all__ = ["DEFAULT_TEXT", "MAX_REPLY_OCTETS", "REPLY", "reply_line"]

#: RFC 5321 §4.5.3.1.5: a reply line, code and CRLF included, is at most 512 octets.
MAX_REPLY_OCTETS = 512

#: RFC 7504 §3 shows this text with the code 521.
DEFAULT_TEXT = "Host does not accept mail"

_FRAME = b"521 %s\r\n"
_MAX_TEXT = MAX_REPLY_OCTETS - len(_FRAME % b"")


def reply_line(text: str) -> bytes:
    """Return ``521 TEXT CRLF`` as octets.

    ``text`` is one line of printable ASCII (RFC 5321 §4.2, ``textstring``, without the tab), 1 to 506 characters.
    Raises `ValueError`, which says what is wrong with it.
    """
    if not text:
        raise ValueError("is empty; give one line of printable ASCII")
    for position, character in enumerate(text, 1):
        if not " " <= character <= "~":
            raise ValueError(f"has {character!a} at character {position}; give one line of printable ASCII")
    if len(text) > _MAX_TEXT:
        raise ValueError(
            f"is {len(text)} characters long; at most {_MAX_TEXT} fit a reply of {MAX_REPLY_OCTETS} octets"
        )
    return _FRAME % text.encode("ascii")


#: The default reply, ready to send.
REPLY = reply_line(DEFAULT_TEXT)
