"""One connection to one address, from the SYN to the FIN."""

import contextlib
import errno
import socket
import time

from nullsmtpd.check.dialogue import ANY, EARLY, QUIT, is_hopeless, known_mode, script_for, split_replies
from nullsmtpd.check.outcome import FIN, MAX_OCTETS, NO_FAMILY, REFUSED, RESET, SILENCE, UNREACHABLE, Probe, fault_of

__all__ = ["TIMEOUT", "probe", "unresolved"]

#: Seconds for everything, from the first SYN to the FIN. Longer than a lost SYN or two (1 s and 2 s, tcp(7)), and no
#: longer than what container engines and Kubernetes' users give a probe.
TIMEOUT = 5.0


def probe(  # noqa: PLR0913 - what may differ from one check to the next
    address: str,
    port: int = 25,
    *,
    mode: str = "close",
    early: bool = False,
    text: str | None = None,
    may_be_full: bool = False,
    timeout: float = TIMEOUT,
) -> Probe:
    """Connect to a literal ``address`` and see whether it refuses mail the way the responder does in ``mode``.

    ``mode`` is one of `MODES`, or `ANY` to go by the greeting. ``early``: speak before the greeting, all commands in
    one go. ``text``: what the 521 has to say, if that matters. ``may_be_full``: one 521 and a FIN are good in each
    mode, as the responder past its --max-sessions answers so. ``timeout`` is in seconds, for all of it: this blocks
    until then at most. What the network or the server does wrong is in the result; raises `ValueError` for a ``mode``
    that is none, and an ``address`` that is no literal one.
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
            _Dialogue(connection, clock, seen).hold(mode, early=early and mode != ANY, may_be_full=may_be_full)
    except OSError as error:
        seen.ending = _ending(error, is_connected=seen.connected is not None)
        seen.reason = error.strerror or ""
    seen.ended = clock.now()
    seen.fault = fault_of(seen, mode, text, may_be_full=may_be_full)
    return seen


def unresolved(host: str, port: int, error: OSError) -> Probe:
    """Return what there is to say of a host without an address."""
    seen = Probe("", port, 0)
    seen.host = host
    seen.ending = UNREACHABLE
    seen.fault = f"no address: {error.strerror}"
    return seen


def _socket_address(address: str, port: int) -> tuple[int, tuple[object, ...]]:
    try:  # as octets: a str would be encoded as an IDN, which loads half a megabyte of tables
        found = socket.getaddrinfo(address.encode("ascii"), port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeEncodeError):
        raise ValueError(f"{address!a} is not an IP address") from None
    return found[0][0], found[0][4]


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

    def hold(self, mode: str, *, early: bool, may_be_full: bool) -> None:
        """Talk until the server has closed or enough was seen. Raises `OSError`."""
        if early:
            self._say(*EARLY[mode])
        heard = 0
        while self._read():
            codes = self._seen.codes
            script = script_for(mode, codes, may_be_full=may_be_full)
            while heard < len(codes):
                heard += 1
                if [due for _, due in script[:heard]] != codes[:heard]:
                    return self._say(QUIT)  # enough was seen
                if heard < len(script) and not early:
                    self._say(script[heard][0])
            if is_hopeless(self._seen.rest) or len(self._seen.received) > MAX_OCTETS:
                return None
        self._seen.ending = FIN
        return None

    def _read(self) -> bool:
        self._connection.settimeout(self._clock.left())
        seen = self._seen
        octets = self._connection.recv(MAX_OCTETS + 1 - len(seen.received))  # one more shows that there are more
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
    if is_connected or isinstance(error, ConnectionResetError):  # which may be seen no later than here
        return RESET
    if isinstance(error, ConnectionRefusedError):
        return REFUSED
    if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.ENETUNREACH):
        return NO_FAMILY
    return UNREACHABLE
