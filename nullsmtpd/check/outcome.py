"""What was seen at one address, and what is wrong with it, in a few words."""

from nullsmtpd.check.dialogue import ANY, Reply, is_hopeless, script_for, shown

__all__ = [
    "FIN",
    "LEFT",
    "MAX_OCTETS",
    "NO_FAMILY",
    "REFUSED",
    "RESET",
    "SILENCE",
    "UNREACHABLE",
    "Probe",
    "fault_of",
]

#: How a connection ended.
FIN = "FIN"
RESET = "reset"
SILENCE = "silence"  # the time was up
LEFT = "left"  # by us: enough was seen
REFUSED = "refused"  # nothing listens
UNREACHABLE = "unreachable"
NO_FAMILY = "no such family"  # nobody can be reached from here by that kind of address

#: A refusal has no more than this, and but one octet beyond is read: eight lines of the longest kind (RFC 5321
#: §4.5.3.1.5) are more than any needs.
MAX_OCTETS = 8 * 512

# How the connection ended, after what was said.
_THEN = {FIN: ", then FIN", RESET: ", then a reset", SILENCE: ", and no end within {timeout:g} s", LEFT: ""}

# What is wrong when there was no connection to see anything on; the kernel's own words where they say more.
_NO_CONNECTION = {
    REFUSED: "connection refused: nothing listens there",
    NO_FAMILY: "cannot be asked from here: {reason}",
}


class Probe:
    """What was seen at one address.

    ``host`` is the name that led there, or the address again; ``address`` is empty for a name that has none.
    ``connected``, ``first_octet`` and ``ended`` are seconds since the first SYN, or `None` for what did not happen.
    ``ending`` is one of the constants above, ``received`` all octets that came, ``replies`` the whole replies among
    them, and ``rest`` what follows those. ``fault`` says in a few words what is wrong, and is empty when nothing is.
    """

    __slots__ = (
        *("address", "connected", "ended", "ending", "fault", "first_octet"),
        *("host", "port", "reason", "received", "replies", "rest", "timeout"),
    )

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
        self.rest = b""
        self.ending = LEFT
        self.reason = ""
        self.fault = ""

    @property
    def is_good(self) -> bool:
        """Whether mail is refused as the mode asks for."""
        return not self.fault

    @property
    def codes(self) -> list[str]:
        """The codes of the whole replies."""
        return [reply.code for reply in self.replies]

    def __str__(self) -> str:
        """Return one line for people, in printable ASCII."""
        address = self.address or self.host
        where = f"[{address}]:{self.port}" if ":" in address else f"{address}:{self.port}"
        name = f"{self.host} " if self.host != address else ""
        found = f"bad: {self.fault}" if self.fault else f"good: {shown(self.received)}, then {self.ending}"
        end = self.ending if self.ending in {FIN, RESET} else "end"
        times = [
            f"{what} {1000 * when:.1f} ms"
            for what, when in (("connect", self.connected), ("first octet", self.first_octet), (end, self.ended))
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
