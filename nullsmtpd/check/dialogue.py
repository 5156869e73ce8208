"""SMTP as check speaks and reads it: what to say in each of the responder's modes, what is due, and what is a reply."""

__all__ = [
    "ANY",
    "EARLY",
    "MAX_LINE_OCTETS",
    "MODES",
    "QUIT",
    "Reply",
    "Script",
    "is_hopeless",
    "known_mode",
    "script_for",
    "shown",
    "split_replies",
]

QUIT = "QUIT"
_EHLO, _HELO, _MAIL = "EHLO {own}", "HELO {own}", "MAIL FROM:<>"

Script = tuple[tuple[str, str], ...]

#: For each mode of the responder: what to say before each reply, and the code that is due then.
MODES: dict[str, Script] = {
    "close": (("", "521"),),
    "session": (("", "521"), (QUIT, "221")),
    "mail": (("", "220"), (_EHLO, "250"), (_MAIL, "521"), (QUIT, "221")),
}

#: A mode for `probe` alone: that which the greeting belongs to.
ANY = "any"

#: What a client in a hurry says in one go, before it has read anything.
EARLY = {"close": (_EHLO, _MAIL), "session": (QUIT,), "mail": (_EHLO, _MAIL, QUIT)}

#: RFC 5321 §4.5.3.1.5: a reply line, code and CRLF included, is at most 512 octets.
MAX_LINE_OCTETS = 512

#: ``textstring`` of RFC 5321 §4.2: the tab, and printable ASCII.
_TEXT = frozenset(b"\t" + bytes(range(32, 127)))

_MAX_SHOWN = 240  # characters of what a server said that a report repeats


def known_mode(text: str) -> str:
    """Return the name of a mode. Raises `ValueError`, whose message goes on after a wrong one."""
    if text not in MODES:
        raise ValueError("is not a mode; give close, session or mail")
    return text


def script_for(mode: str, codes: list[str], *, may_be_full: bool) -> Script:
    """Return what to say and what is due, now that these replies are here.

    ``may_be_full``: whether the answer of a responder past its --max-sessions, that of close, is due as well.
    """
    if mode == ANY:
        if codes[:1] != ["220"]:
            return MODES["session"]
        return _with_helo(codes[1]) if codes[1:] and codes[1][0] == "5" else MODES["mail"]
    return MODES["close"] if mode == "mail" and codes[:1] == ["521"] and may_be_full else MODES[mode]


def _with_helo(refusal: str) -> Script:
    """Return what to say to a server that does not know EHLO (RFC 5321 §3.2)."""
    greeting, (ehlo, due), *rest = MODES["mail"]
    return (greeting, (ehlo, refusal), (_HELO, due), *rest)


class Reply:
    """One whole reply: three digits, and the text of its lines, joined by LF when there are several."""

    __slots__ = ("code", "text")

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        self.text = text


def split_replies(octets: bytes) -> tuple[list[Reply], bytes]:
    """Return the whole replies at the beginning, and the octets after them: b"" when nothing else was said.

    A reply may have several lines, ``521-…`` before ``521 …`` with the same code (RFC 5321 §4.2.1); RFC 7504 asks for a
    reply, and does not confine it to one line. ``521``, ``521 `` and ``521 text`` all end one: RFC 5321 §4.2 has
    clients take a code without text. What is no reply line, or too long for one, is left over with all that follows.
    """
    replies: list[Reply] = []
    rest, end = octets, 0
    lines: list[bytes] = []
    while (found := octets.find(b"\r\n", end)) >= 0:
        line, end = octets[end:found], found + 2
        if not _is_reply_line(line) or (lines and lines[0][:3] != line[:3]):
            break
        lines.append(line)
        if line[3:4] != b"-":
            text = b"\n".join(line[4:] for line in lines).decode("ascii")
            replies.append(Reply(line[:3].decode("ascii"), text))
            rest, lines = octets[end:], []
    return replies, rest


def _is_reply_line(line: bytes) -> bool:
    code, mark, text = line[:3], line[3:4], line[4:]
    return (
        len(line) + len(b"\r\n") <= MAX_LINE_OCTETS
        and len(code) == len("521")
        and code[0] in b"2345"  # RFC 5321 §4.2: the digits of a code
        and code[1] in b"012345"
        and code[2] in b"0123456789"
        and mark in (b"", b" ", b"-")
        and _TEXT.issuperset(text)
    )


def is_hopeless(rest: bytes) -> bool:
    """Tell whether what is left over can no longer become a reply, whatever follows."""
    start = 0
    while (found := rest.find(b"\r\n", start)) >= 0:
        line, start = rest[start:found], found + 2
        if not _is_reply_line(line) or line[:3] != rest[:3]:
            return True
    open_line = rest[start:]
    return len(open_line) > MAX_LINE_OCTETS or b"\n" in open_line


def shown(octets: bytes) -> str:
    """Return octets the way a report repeats them: quoted, escaped, on one line, and not at any length."""
    escaped = ascii(octets.decode("latin-1"))
    return escaped if len(escaped) <= _MAX_SHOWN else f"{escaped[:_MAX_SHOWN]}... ({len(octets)} octets)"
