"""The client's side of each of the responder's modes: what to say, and what is due."""

__all__ = ["ANY", "EARLY", "MODES", "QUIT", "Script", "known_mode", "script_for"]

QUIT = "QUIT"
_EHLO, _MAIL = "EHLO {own}", "MAIL FROM:<>"

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


def script_for(mode: str, codes: list[str]) -> Script:
    """Return what to say and what is due, now that these replies are here."""
    if codes[:1] == ["521"] and mode in {"mail", "close"}:
        return MODES["close"]
    if mode == ANY:
        return MODES["mail" if codes[:1] == ["220"] else "session"]
    return MODES[mode]
