"""What was seen at one address, and what is wrong with it."""

from nullsmtpd.check.dialogue import ANY, Reply, parse_replies, quoted, script_for

__all__ = ["FIN", "LEFT", "MAX_OCTETS", "NO_FAMILY", "REFUSED", "RESET", "SILENCE", "UNREACHABLE", "Probe", "fault_of"]

#: How a connection ended.
FIN = "FIN"
RESET = "reset"
SILENCE = "silence"  # timed out after connecting
LEFT = "left"  # closed by the check: it had seen enough
REFUSED = "refused"  # nothing listens
UNREACHABLE = "unreachable"
NO_FAMILY = "no such family"  # this host has no such address family, or no route for it

#: A refusal has at most this many octets, and one more is read to see that there are more: eight lines of the longest
#: kind (RFC 5321 §4.5.3.1.5) are more than any needs.
MAX_OCTETS = 8 * 512

# How the connection ended, after the octets received.
_THEN = {FIN: ", then FIN", RESET: ", then a reset", SILENCE: ", not closed within {timeout:g} s", LEFT: ""}

# Why there was no connection; elsewhere the kernel's own words.
_NO_CONNECTION = {
    REFUSED: "connection refused: nothing listens there",
    NO_FAMILY: "cannot be reached from this host: {reason}",
}


class Probe:
    """What was seen at one address.

    ``host`` is the name that led there, or the address again; ``address`` is empty for a name that has none.
    ``connected``, ``first_octet`` and ``ended`` are seconds since the first SYN, or `None` for what did not happen.
    ``ending`` is one of the constants above, ``received`` all octets, ``replies`` the complete replies among them.
    ``fault`` is what is wrong in a few words, or empty.
    """

    def __init__(self, address: str, port: int, timeout: float) -> None:
        self.host = address
        self.address = address
        self.port = port
        self.timeout = timeout
        self.connected: float | None = None
        self.first_octet: float | None = None
        self.ended: float | None = None
        self.received = b""
        self.replies: list[Reply] = []
        self.ending = LEFT
        self.reason = ""
        self.fault = ""

    @property
    def is_good(self) -> bool:
        """Whether mail is refused as the mode requires."""
        return not self.fault

    @property
    def codes(self) -> list[str]:
        """The codes of the complete replies."""
        return [reply.code for reply in self.replies]

    def __str__(self) -> str:
        """Return one line in printable ASCII."""
        address = self.address or self.host
        where = f"[{address}]:{self.port}" if ":" in address else f"{address}:{self.port}"
        name = f"{self.host} " if self.host != address else ""
        found = f"bad: {self.fault}" if self.fault else f"good: {quoted(self.received)}, then {self.ending}"
        end = self.ending if self.ending in {FIN, RESET} else "end"
        times = [
            f"{event} {1000 * when:.1f} ms"
            for event, when in (("connect", self.connected), ("first octet", self.first_octet), (end, self.ended))
            if when is not None
        ]
        return f"{name}{where} {found}" + (f" ({', '.join(times)})" if times else "")


def fault_of(seen: Probe, mode: str, text: str | None, *, may_be_full: bool) -> str:
    """Return what keeps this from being a proper refusal in ``mode``, on one line, or ``""``.

    ``text``: what the 521 has to say; `None` if anything will do. ``may_be_full`` as for `script_for`.
    """
    if seen.connected is None:
        words = "{reason}" if seen.reason else "no answer to the SYN within {timeout:g} s"
        return _NO_CONNECTION.get(seen.ending, words).format(reason=seen.reason, timeout=seen.timeout)
    fault = _wrong_octets(seen) or _wrong_codes(seen, mode, may_be_full=may_be_full) or _wrong_text(seen, text)
    if not fault and seen.ending == FIN:
        return ""
    then = _THEN[seen.ending].format(timeout=seen.timeout)
    return f"{fault or 'no FIN after the reply'}: {quoted(seen.received)}{then}"


def _wrong_octets(seen: Probe) -> str:
    if not seen.received:
        return "no data received"
    if len(seen.received) > MAX_OCTETS:
        return f"more than {MAX_OCTETS} octets"
    replies, rest, is_invalid = parse_replies(seen.received)
    if rest and replies:
        return "octets after the last complete reply"
    if rest:
        return "not an SMTP reply" if is_invalid else "an incomplete reply"
    return ""


def _wrong_codes(seen: Probe, mode: str, *, may_be_full: bool) -> str:
    codes, script = seen.codes, script_for(mode, seen.codes, may_be_full=may_be_full)
    if codes == ["521"] and (may_be_full or mode == ANY):
        return ""  # even though the 221 of mode session is missing
    for step, (command, due) in enumerate(script):
        reply = f"the reply to {command.partition(' ')[0]}" if command else "the greeting"
        if step == len(codes):
            return f"{reply} is missing"
        if codes[step] != due:
            return f"{reply} is {codes[step]}, not {due}"
    return "one reply too many" if len(codes) > len(script) else ""


def _wrong_text(seen: Probe, text: str | None) -> str:
    if text is None or any(reply.code == "521" and reply.text in (text, f"5.3.2 {text}") for reply in seen.replies):
        return ""
    return f"the text of the 521 is not {quoted(text.encode('utf-8', 'surrogateescape'))}"
