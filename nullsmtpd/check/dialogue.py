"""The client's side of SMTP: what to send in each of the responder's modes, which codes are due, what is a reply."""

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

#: RFC 5321 §4.5.3.1.5: a reply line, code and CRLF included, is at most 512 octets.
_MAX_LINE_OCTETS = 512

#: RFC 5321 §4.2: the digits that each place of a code may have, and ``textstring``, the tab and printable ASCII.
_CODE = b"2345", b"012345", b"0123456789"
_TEXT = frozenset(b"\t" + bytes(range(32, 127)))

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


def parse_replies(octets: bytes) -> tuple[list[Reply], bytes, bool]:
    """Return the complete replies at the beginning, the octets after them, and whether those can become no reply.

    A reply may have several lines, ``521-…`` before ``521 …`` with the same code (RFC 5321 §4.2.1); RFC 7504 asks for a
    reply, and does not confine it to one line. ``521``, ``521 `` and ``521 text`` all end one: RFC 5321 §4.2 has
    clients accept a code without text.
    """
    replies: list[Reply] = []
    lines: list[bytes] = []
    start = position = 0  # of the octets after the last complete reply, and of the current line
    while (end := octets.find(b"\r\n", position)) >= 0:
        line, position = octets[position:end], end + len(b"\r\n")
        if not _is_reply_line(line) or (lines and lines[0][:3] != line[:3]):
            return replies, octets[start:], True
        lines.append(line)
        if line[3:4] != b"-":
            text = b"\n".join(line[4:] for line in lines).decode("ascii")
            replies.append(Reply(line[:3].decode("ascii"), text))
            lines, start = [], position
    unfinished = octets[position:]
    return replies, octets[start:], len(unfinished) >= _MAX_LINE_OCTETS or b"\n" in unfinished


def _is_reply_line(line: bytes) -> bool:
    return (
        len(b"521") <= len(line) <= _MAX_LINE_OCTETS - len(b"\r\n")
        and all(octet in digits for octet, digits in zip(line, _CODE, strict=False))
        and line[3:4] in (b"", b" ", b"-")
        and _TEXT.issuperset(line[4:])
    )


def quoted(octets: bytes) -> str:
    """Return octets for a report: quoted, escaped, on one line, and shortened."""
    escaped = ascii(octets.decode("latin-1"))
    return escaped if len(escaped) <= _MAX_QUOTED else f"{escaped[:_MAX_QUOTED]}... ({len(octets)} octets)"
