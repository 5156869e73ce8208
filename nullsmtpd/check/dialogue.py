"""The client's side of SMTP: what to send in each of the responder's modes, which codes are due, what is a reply."""

import re
from typing import NamedTuple

__all__ = ["ANY", "MODES", "QUIT", "Reply", "early_commands", "known_mode", "parse_replies", "quoted", "script_for"]

QUIT = "QUIT"
_EHLO, _HELO, _MAIL = "EHLO {own}", "HELO {own}", "MAIL FROM:<>"

Script = tuple[tuple[str, str], ...]

#: For each mode of the responder: the command to send before each reply, and the code that is due then.
MODES: dict[str, Script] = {
    "close": (("", "521"),),
    "session": (("", "521"), (QUIT, "221")),
    "mail": (("", "220"), (_EHLO, "250"), (_MAIL, "521"), (QUIT, "221")),
}

ANY = "any"  #: a mode for `probe` alone: the one that the greeting belongs to

# RFC 5321 §4.2: the digits of a code, and the text: tab and printable ASCII. §4.5.3.1.5: a line has at most 512 octets,
# the code and CRLF included.
_CODE, _TEXT_CRLF = rb"([2-5][0-5][0-9])", rb"[\t -~]{0,506}\r\n"
_REPLY = re.compile(rb"%b(?:-%b\1)*(?: %b|\r\n)" % (_CODE, _TEXT_CRLF, _TEXT_CRLF))
_BEGINNING = re.compile(rb"(?:%b-%b(?:\1-%b)*)?[^\n]{0,511}" % (_CODE, _TEXT_CRLF, _TEXT_CRLF))

# What most mail servers take for a reply: lines of any octets and length that end in LF; the last one has the code.
_LENIENT_REPLY = re.compile(rb"(?:[2-5][0-9]{2}-[^\n]*\n)*[2-5][0-9]{2}(?:[ \r][^\n]*)?\n")
_LENIENT_BEGINNING = re.compile(rb"(?:[2-5][0-9]{2}-[^\n]*\n)*[^\n]*")

_MAX_QUOTED = 240  # characters of a server's octets that a report repeats


def known_mode(text: str) -> str:
    """Return the name of a mode. Raises `ValueError`, to be read after the text."""
    if text not in MODES:
        raise ValueError("is not a mode; give close, session or mail")
    return text


def script_for(mode: str, codes: list[str], *, may_be_full: bool) -> Script:
    """Return what to send and which codes are due, given the codes received so far.

    ``may_be_full``: a responder at its --max-sessions, which replies as in mode close, is accepted too.
    """
    if mode == ANY:
        mode = "mail" if codes[:1] == ["220"] else "session"
        if mode == "mail" and codes[1:] and codes[1][0] == "5":  # EHLO is refused: clients try HELO (RFC 5321 §3.2)
            greeting, (ehlo, due), *rest = MODES["mail"]
            return (greeting, (ehlo, codes[1]), (_HELO, due), *rest)
    return MODES["close"] if mode == "mail" and codes[:1] == ["521"] and may_be_full else MODES[mode]


def early_commands(mode: str) -> list[str]:
    """Return what an early talker sends in one go, before it has read anything."""
    return [command for command, _ in MODES[mode] if command] or [_EHLO, _MAIL]


class Reply(NamedTuple):
    """One complete reply: three digits, and the text of its lines, joined by LF when there are several."""

    code: str
    text: str


def parse_replies(octets: bytes, *, lenient: bool = False) -> tuple[list[Reply], bytes, bool]:
    """Return the complete replies at the beginning, the octets after them, and whether those can become no reply.

    A reply may have several lines, ``521-…`` before ``521 …`` with the same code (RFC 5321 §4.2.1); RFC 7504 asks for a
    reply, and does not confine it to one line. ``521``, ``521 `` and ``521 text`` all end one: RFC 5321 §4.2 has
    clients accept a code without text. ``lenient``: all that most mail servers take for a reply, one character of the
    text for each octet.
    """
    reply, beginning = (_LENIENT_REPLY, _LENIENT_BEGINNING) if lenient else (_REPLY, _BEGINNING)
    replies: list[Reply] = []
    end = 0
    while found := reply.match(octets, end):
        end = found.end()
        lines = found[0].decode("latin-1").removesuffix("\n").split("\n")
        replies.append(Reply(lines[-1][:3], "\n".join(line[4:].removesuffix("\r") for line in lines)))
    return replies, octets[end:], not beginning.fullmatch(octets, end)


def quoted(octets: bytes) -> str:
    """Return octets for a report: quoted, escaped, on one line, and shortened."""
    escaped = ascii(octets.decode("latin-1"))
    return escaped if len(escaped) <= _MAX_QUOTED else f"{escaped[:_MAX_QUOTED]}... ({len(octets)} octets)"
