"""The client's side of each of the responder's modes: what to say, and what is due."""

__all__ = ["ANY", "EARLY", "MODES", "QUIT", "Script", "known_mode", "script_for"]

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
