"""One connection to one address, from the SYN to the FIN."""

import contextlib
import errno
import socket
import time

from nullsmtpd.check.dialogue import ANY, QUIT, early_commands, known_mode, parse_replies, script_for
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

    ``mode``: one of `MODES`, or `ANY` to go by the greeting. ``early``: send all commands before the greeting, in one
    go. ``text``: what the 521 has to say, if that matters. ``may_be_full``: one 521 and a FIN are good in each mode,
    the reply of a responder at its --max-sessions. ``timeout``: seconds, for all of it; this blocks until then at most.
    Faults of the network and of the server are in the result. Raises `ValueError` for an unknown ``mode``, and an
    ``address`` that is no literal one.
    """
    if mode != ANY:
        known_mode(mode)
    seen = Probe(address, port, timeout)
    family, sockaddr = _socket_address(address, port)
    start = time.monotonic()
    try:
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(sockaddr)
            seen.connected = time.monotonic() - start
            _Dialogue(connection, start, seen).run(mode, early=early and mode != ANY, may_be_full=may_be_full)
    except OSError as error:
        seen.ending = _ending(error, is_connected=seen.connected is not None)
        seen.reason = error.strerror or ""
    seen.ended = time.monotonic() - start
    seen.fault = fault_of(seen, mode, text, may_be_full=may_be_full)
    return seen


def unresolved(host: str, port: int, error: OSError) -> Probe:
    """Return the result for a host without an address."""
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


class _Dialogue:
    """Sends the script's next command once the reply before it has arrived and has the code that is due."""

    def __init__(self, connection: socket.socket, start: float, seen: Probe) -> None:
        self._connection = connection
        self._start = start
        self._seen = seen
        own = connection.getsockname()[0].partition("%")[0]
        self._own = f"[IPv6:{own}]" if ":" in own else f"[{own}]"  # RFC 5321 §4.1.3: no host name could be verified

    def run(self, mode: str, *, early: bool, may_be_full: bool) -> None:
        """Return once the server has closed or enough was seen. Raises `OSError`."""
        seen = self._seen
        if early:
            self._send(*early_commands(mode))
        checked = 0
        while self._read():
            seen.replies, _, is_invalid = parse_replies(seen.received)
            codes = seen.codes
            script = script_for(mode, codes, may_be_full=may_be_full)
            while checked < len(codes):
                checked += 1
                if [due for _, due in script[:checked]] != codes[:checked]:
                    return self._send(QUIT)  # enough was seen
                if checked < len(script) and not early:
                    self._send(script[checked][0])
            if is_invalid or len(seen.received) > MAX_OCTETS:
                return None
        seen.ending = FIN
        return None

    def _read(self) -> bool:
        """Receive what there is; return False at the FIN."""
        seen = self._seen
        if (left := seen.timeout - (time.monotonic() - self._start)) <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        octets = self._connection.recv(MAX_OCTETS + 1 - len(seen.received))
        if octets and seen.first_octet is None:
            seen.first_octet = time.monotonic() - self._start
        seen.received += octets
        return bool(octets)

    def _send(self, *commands: str) -> None:
        lines = "".join(f"{command.format(own=self._own)}\r\n" for command in commands)
        with contextlib.suppress(OSError):  # closed by the server; what it sent before is still to be read
            self._connection.sendall(lines.encode("ascii"))


def _ending(error: OSError, *, is_connected: bool) -> str:
    if isinstance(error, TimeoutError):
        return SILENCE if is_connected else UNREACHABLE
    if is_connected or isinstance(error, ConnectionResetError):  # connect() too may report a reset
        return RESET
    if isinstance(error, ConnectionRefusedError):
        return REFUSED
    if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.ENETUNREACH):
        return NO_FAMILY
    return UNREACHABLE
