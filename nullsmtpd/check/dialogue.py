"""The client's side of SMTP: what to send in each of the responder's modes, which codes are due, what is a reply."""

import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["ANY", "CLOSE", "MODES", "QUIT", "SCRIPTS", "Reply", "Script", "early_commands", "known_mode"]
__all__ += ["parse_replies", "quoted", "steps_after", "wrong_code"]

QUIT = "QUIT"
_EHLO, _HELO, _MAIL = "EHLO {own}", "HELO {own}", "MAIL FROM:<>"

#: The command to send before each reply, and how the code that is due then begins.
Script = tuple[tuple[str, str], ...]

CLOSE: Script = (("", "521"),)
#: For each mode of the responder.
MODES: dict[str, Script] = {
    "close": CLOSE,
    "session": (*CLOSE, (QUIT, "221")),
    "mail": (("", "220"), (_EHLO, "250"), (_MAIL, "521"), (QUIT, "221")),
}
_WITHOUT_EHLO = (("", "220"), (_EHLO, "5"), (_HELO, "250"), *MODES["mail"][2:])  # clients try HELO (RFC 5321 §3.2)

ANY = "any"  #: a mode for `probe` alone: the one that the greeting belongs to
SCRIPTS: dict[str, Sequence[Script]] = {mode: (script,) for mode, script in MODES.items()}
SCRIPTS[ANY] = (MODES["session"], CLOSE, MODES["mail"], _WITHOUT_EHLO)

# RFC 5321 §4.2: the digits of a code, and the text: tab and printable ASCII. §4.5.3.1.5: a line has at most 512 octets,
# the code and CRLF included. Most mail servers take lines of any octets and length that end in LF.
_LINE = re.compile(rb"([2-5][0-5][0-9])(?:([ -])([\t -~]{0,506}))?\r\n")
_LENIENT_LINE = re.compile(rb"([2-5][0-9]{2})(?:([ -])([^\n]*?))?\r?\n")
_MAX_LINE = 512

_MAX_QUOTED = 240  # characters of a server's octets that a report repeats


def known_mode(text: str) -> str:
    """Return the name of a mode. Raises `ValueError`, to be read after the text."""
    if text not in MODES:
        raise ValueError("is not a mode; give close, session or mail")
    return text


def early_commands(mode: str) -> list[str]:
    """Return what an early talker sends in one go, before it has read anything."""
    return [command for command, _ in MODES.get(mode, CLOSE) if command] or [_EHLO, _MAIL]


def steps_after(code: str, scripts: Sequence[Script]) -> list[Script]:
    """Return what remains of the scripts in which this code is due first."""
    return [script[1:] for script in scripts if script and code.startswith(script[0][1])]


def wrong_code(codes: Sequence[str], scripts: Sequence[Script]) -> str:
    """Return why none of the scripts has exactly these codes, going by the first one that has most, or ``""``."""
    for code in codes:
        step = scripts[0][:1]
        if not (scripts := steps_after(code, scripts)):
            return f"{_reply_to(step[0][0])} is {code}, not {step[0][1]}" if step else "one reply too many"
    return "" if () in scripts else f"{_reply_to(scripts[0][0][0])} is missing"


def _reply_to(command: str) -> str:
    return f"the reply to {command.partition(' ')[0]}" if command else "the greeting"


class Reply(NamedTuple):
    """One complete reply: three digits, and the text of its lines, joined by LF when there are several."""

    code: str
    text: str


def parse_replies(octets: bytes, *, lenient: bool = False) -> tuple[list[Reply], bytes, bool]:
    """Return the complete replies at the beginning, the octets after them, and whether those can become no reply.

    A reply may have several lines, ``521-…`` before ``521 …`` with the same code (RFC 5321 §4.2.1); RFC 7504 asks for a
    reply, and does not confine it to one line. ``521``, ``521 `` and ``521 text`` all end one: RFC 5321 §4.2 has
    clients accept a code without text. ``lenient``: all that most mail servers take for a reply, one character of the
    text for each octet; its code is that of the last line.
    """
    form = _LENIENT_LINE if lenient else _LINE
    replies: list[Reply] = []
    texts: list[str] = []  # of the lines of one reply
    code, end, position = b"", 0, 0
    while (line := form.match(octets, position)) and (lenient or not texts or line[1] == code):
        code, position = line[1], line.end()
        texts.append((line[3] or b"").decode("latin-1"))
        if line[2] != b"-":
            replies.append(Reply(code.decode("ascii"), "\n".join(texts)))
            texts, end = [], position
    rest = octets[position:]
    return replies, octets[end:], b"\n" in rest or (not lenient and len(rest) >= _MAX_LINE)


def quoted(octets: bytes | str) -> str:
    """Return octets, or text with one character for each of them, for a report: escaped, on one line, and shortened."""
    escaped = ascii(octets if isinstance(octets, str) else octets.decode("latin-1"))
    return escaped if len(escaped) <= _MAX_QUOTED else f"{escaped[:_MAX_QUOTED]}... ({len(octets)} octets)"
