"""What was seen at one address."""

from nullsmtpd.check.replies import Reply, shown

__all__ = ["FIN", "LEFT", "NO_FAMILY", "REFUSED", "RESET", "SILENCE", "UNREACHABLE", "Probe"]

#: How a connection ended.
FIN = "FIN"
RESET = "reset"
SILENCE = "silence"  # the time was up
LEFT = "left"  # by us: enough was seen
REFUSED = "refused"  # nothing listens
UNREACHABLE = "unreachable"
NO_FAMILY = "no such family"  # nobody can be reached from here by that kind of address


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
