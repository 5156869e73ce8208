"""One connection to one address: what is said there, how it ends, when, and what is wrong with it."""

import contextlib
import errno
import socket
import time

from nullsmtpd.check.replies import Reply, is_hopeless, shown, split_replies

__all__ = [
    "ANY",
    "FIN",
    "LEFT",
    "MAX_OCTETS",
    "MODES",
    "NO_FAMILY",
    "REFUSED",
    "RESET",
    "SILENCE",
    "TIMEOUT",
    "UNREACHABLE",
    "Probe",
    "known_mode",
    "probe",
    "unresolved",
]

#: Seconds for everything, from the first SYN to the FIN. Longer than a lost SYN or two (1 s and 2 s, tcp(7)), and no
#: longer than what container engines and Kubernetes' users give a probe.
TIMEOUT = 5.0

#: Read no more than this: eight lines of the longest kind (RFC 5321 §4.5.3.1.5) are more than any refusal needs.
MAX_OCTETS = 8 * 512

_QUIT = "QUIT"
_EHLO, _MAIL = "EHLO {own}", "MAIL FROM:<>"

#: For each mode of the responder: what to say before each reply, and the code that is due then. `None` is to find out.
MODES: dict[str, tuple[tuple[str, str], ...]] = {
    "close": (("", "521"),),
    "session": (("", "521"), (_QUIT, "221")),
    "mail": (("", "220"), (_EHLO, "250"), (_MAIL, "521"), (_QUIT, "221")),
}

#: A mode for `probe` alone: that which the greeting belongs to.
ANY = "any"

# What a client in a hurry says in one go, before it has read anything.
_EARLY = {"close": (_EHLO, _MAIL), "session": (_QUIT,), "mail": (_EHLO, _MAIL, _QUIT)}

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

    ``host`` is the name that led there, or the address again. ``connected``, ``first_octet`` and ``ended`` are seconds
    since the first SYN, or `None` for what did not happen. ``ending`` is one of the words above, ``received`` all
    octets that came, ``replies`` the whole replies among them, and ``rest`` what follows those. ``fault`` says in a few
    words what is wrong, and is empty when nothing is.
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
        where = f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"
        name = f"{self.host} " if self.host != self.address else ""
        found = f"bad: {self.fault}" if self.fault else f"good: {shown(self.received)}, then {self.ending}"
        end = self.ending if self.ending in {FIN, RESET} else "end"
        times = [
            f"{what} {1000 * when:.1f} ms"
            for what, when in (("connect", self.connected), ("first octet", self.first_octet), (end, self.ended))
            if when is not None
        ]
        return f"{name}{where} {found}" + (f" ({', '.join(times)})" if times else "")


def probe(  # noqa: PLR0913 - what may differ from one check to the next
    address: str,
    port: int = 25,
    *,
    mode: str = "close",
    early: bool = False,
    text: str | None = None,
    timeout: float = TIMEOUT,
) -> Probe:
    """Connect to a literal ``address`` and see whether it refuses mail the way the responder does in ``mode``.

    ``mode`` is one of `MODES`, or `ANY` to go by the greeting. In each of them one whole 521 reply and a FIN are good,
    since a responder that has its hands full answers so. ``early``: speak before the greeting, all commands in one go.
    ``text``: what the 521 has to say, if that matters. ``timeout`` is in seconds, for all of it: this blocks until then
    at most. What the network or the server does wrong is in the result; raises `ValueError` for a ``mode`` that is
    none, and an ``address`` that is no literal one.
    """
    if mode != ANY:
        known_mode(mode)
    seen = Probe(address, port, timeout)
    family, sockaddr = _socket_address(address, port)
    clock = _Clock(timeout)
    try:
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(sockaddr)
            seen.connected = clock.now()
            _Dialogue(connection, clock, seen).hold(mode, early=early and mode != ANY)
    except OSError as error:
        seen.ending = _ending(error, is_connected=seen.connected is not None)
        seen.reason = error.strerror or ""
    seen.ended = clock.now()
    seen.fault = _fault(seen, mode, text)
    return seen


def known_mode(text: str) -> str:
    """Return the name of a mode. Raises `ValueError`, whose message goes on after a wrong one."""
    if text not in MODES:
        raise ValueError("is not a mode; give close, session or mail")
    return text


def unresolved(host: str, port: int, error: OSError) -> Probe:
    """Return what there is to say of a host without an address."""
    seen = Probe(host, port, 0)
    seen.ending = UNREACHABLE
    seen.fault = f"no address: {error.strerror}"
    return seen


def _socket_address(address: str, port: int) -> tuple[int, tuple[object, ...]]:
    try:  # as octets: a str would be encoded as an IDN, which loads half a megabyte of tables
        found = socket.getaddrinfo(address.encode("ascii"), port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeEncodeError):
        raise ValueError(f"{address!a} is not an IP address") from None
    return found[0][0], found[0][4]


def _script(mode: str, codes: list[str]) -> tuple[tuple[str, str], ...]:
    """Return what to say and what is due, now that these replies are here."""
    if codes[:1] == ["521"] and mode in {"mail", "close"}:
        return MODES["close"]
    if mode == ANY:
        return MODES["mail" if codes[:1] == ["220"] else "session"]
    return MODES[mode]


class _Clock:
    """Seconds since now, and how many of them are left."""

    def __init__(self, timeout: float) -> None:
        self._start = time.monotonic()
        self._timeout = timeout

    def now(self) -> float:
        return time.monotonic() - self._start

    def left(self) -> float:
        """Return the seconds that are left. Raises `TimeoutError` when none are."""
        if (left := self._timeout - self.now()) <= 0:
            raise TimeoutError
        return left


class _Dialogue:
    """The client's side: it says what the script has next once the reply before that is there and is the right one."""

    def __init__(self, connection: socket.socket, clock: _Clock, seen: Probe) -> None:
        self._connection = connection
        self._clock = clock
        self._seen = seen
        own = connection.getsockname()[0].partition("%")[0]
        self._own = f"[IPv6:{own}]" if ":" in own else f"[{own}]"  # RFC 5321 §4.1.3: no name needs to be right

    def hold(self, mode: str, *, early: bool) -> None:
        """Talk until the server has closed or enough was seen. Raises `OSError`."""
        if early:
            self._say(*_EARLY[mode])
        heard = 0
        while self._read():
            codes = self._seen.codes
            script = _script(mode, codes)
            while heard < len(codes):
                heard += 1
                if [due for _, due in script[:heard]] != codes[:heard]:
                    return self._say(_QUIT)  # enough was seen
                if heard < len(script) and not early:
                    self._say(script[heard][0])
            if is_hopeless(self._seen.rest) or len(self._seen.received) > MAX_OCTETS:
                return None
        self._seen.ending = FIN
        return None

    def _read(self) -> bool:
        self._connection.settimeout(self._clock.left())
        octets = self._connection.recv(MAX_OCTETS)
        seen = self._seen
        if octets and seen.first_octet is None:
            seen.first_octet = self._clock.now()
        seen.received += octets
        seen.replies, seen.rest = split_replies(seen.received)
        return bool(octets)

    def _say(self, *commands: str) -> None:
        lines = "".join(f"{command.format(own=self._own)}\r\n" for command in commands)
        with contextlib.suppress(OSError):  # it has gone; what it said before, and how it went, is still to be read
            self._connection.sendall(lines.encode("ascii"))


def _ending(error: OSError, *, is_connected: bool) -> str:
    if isinstance(error, TimeoutError):
        return SILENCE if is_connected else UNREACHABLE
    if is_connected:
        return RESET
    if isinstance(error, ConnectionRefusedError):
        return REFUSED
    if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.ENETUNREACH):
        return NO_FAMILY
    return UNREACHABLE


# What is wrong when there was no connection to see anything on; the kernel's own words where they say more.
_NO_CONNECTION = {
    REFUSED: "connection refused: nothing listens there",
    NO_FAMILY: "cannot be asked from here: {reason}",
}


def _fault(seen: Probe, mode: str, text: str | None) -> str:
    if seen.connected is None:
        words = "{reason}" if seen.reason else "no answer to the SYN within {timeout:g} s"
        return _NO_CONNECTION.get(seen.ending, words).format(reason=seen.reason, timeout=seen.timeout)
    if not (wrong := _wrong_octets(seen) or _wrong_codes(seen, mode) or _wrong_text(seen, text)):
        if seen.ending == FIN:
            return ""
        wrong = "no FIN after the reply"
    return f"{wrong}: {shown(seen.received)}{_THEN[seen.ending].format(timeout=seen.timeout)}"


_THEN = {FIN: ", then FIN", RESET: ", then a reset", SILENCE: ", then silence until {timeout:g} s", LEFT: ""}


def _wrong_octets(seen: Probe) -> str:
    if not seen.received:
        return "not a word"
    if len(seen.received) > MAX_OCTETS:
        return f"more than {MAX_OCTETS} octets"
    if is_hopeless(seen.rest):
        return "not an SMTP reply"
    if seen.rest:
        return "octets after the reply" if seen.replies else "half a reply"
    return ""


def _wrong_codes(seen: Probe, mode: str) -> str:
    codes, script = seen.codes, _script(mode, seen.codes)
    if codes == ["521"]:
        return ""
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
