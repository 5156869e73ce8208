"""What is wrong with what was seen, in a few words."""

from nullsmtpd.check.modes import ANY, script_for
from nullsmtpd.check.outcome import FIN, LEFT, NO_FAMILY, REFUSED, RESET, SILENCE, Probe
from nullsmtpd.check.replies import is_hopeless, shown

__all__ = ["MAX_OCTETS", "fault_of"]

#: Read no more than this: eight lines of the longest kind (RFC 5321 §4.5.3.1.5) are more than any refusal needs.
MAX_OCTETS = 8 * 512

# How the connection ended, after what was said.
_THEN = {FIN: ", then FIN", RESET: ", then a reset", SILENCE: ", and no end within {timeout:g} s", LEFT: ""}

# What is wrong when there was no connection to see anything on; the kernel's own words where they say more.
_NO_CONNECTION = {
    REFUSED: "connection refused: nothing listens there",
    NO_FAMILY: "cannot be asked from here: {reason}",
}


def fault_of(seen: Probe, mode: str, text: str | None, *, may_be_full: bool) -> str:
    """Return what keeps this from being a proper refusal in ``mode``, on one line, or ``""``.

    ``text``: what the 521 has to say; `None` if anything will do. ``may_be_full`` as for `script_for`.
    """
    if seen.connected is None:
        words = "{reason}" if seen.reason else "no answer to the SYN within {timeout:g} s"
        return _NO_CONNECTION.get(seen.ending, words).format(reason=seen.reason, timeout=seen.timeout)
    wrong = _wrong_octets(seen) or _wrong_codes(seen, mode, may_be_full=may_be_full) or _wrong_text(seen, text)
    if not wrong:
        if seen.ending == FIN:
            return ""
        wrong = "no FIN after the reply"
    return f"{wrong}: {shown(seen.received)}{_THEN[seen.ending].format(timeout=seen.timeout)}"


def _wrong_octets(seen: Probe) -> str:
    if not seen.received:
        return "not a word"
    if len(seen.received) > MAX_OCTETS:
        return f"more than {MAX_OCTETS} octets"
    if seen.rest and seen.replies:
        return "octets after the last whole reply"
    if seen.rest:
        return "not an SMTP reply" if is_hopeless(seen.rest) else "half a reply"
    return ""


def _wrong_codes(seen: Probe, mode: str, *, may_be_full: bool) -> str:
    codes, script = seen.codes, script_for(mode, seen.codes, may_be_full=may_be_full)
    if codes == ["521"] and (may_be_full or mode == ANY):
        return ""  # though in mode session the 221 to QUIT is missing
    for step, (command, due) in enumerate(script):
        to = f"the reply to {command.partition(' ')[0]}" if command else "the greeting"
        if step == len(codes):
            return f"{to} is missing"
        if codes[step] != due:
            return f"{to} is {codes[step]}, not {due}"
    return "one reply too many" if len(codes) > len(script) else ""


def _wrong_text(seen: Probe, text: str | None) -> str:
    if text is None or any(reply.code == "521" and reply.text in (text, f"5.3.2 {text}") for reply in seen.replies):
        return ""
    return f"the 521 does not say {shown(text.encode('utf-8', 'surrogateescape'))}"
