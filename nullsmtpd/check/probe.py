"""One connection to one address, from the SYN to the FIN: what was seen, what is wrong with it; and many at once."""

import contextlib
import errno
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from nullsmtpd.check.dialogue import ANY, QUIT, Reply, early_commands, known_mode, parse_replies, quoted, script_for

__all__ = ["MAX_OCTETS", "TIMEOUT", "Probe", "check_host", "probe", "probe_hosts", "run_all"]
__all__ += ["FIN", "LEFT", "NO_FAMILY", "REFUSED", "RESET", "SILENCE", "UNREACHABLE"]

#: Seconds for everything, from the first SYN to the FIN. Longer than a lost SYN or two (1 s and 2 s, tcp(7)), and no
#: longer than what container engines and Kubernetes' users give a probe.
TIMEOUT = 5.0

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

_MAX_THREADS = 32  # each waits for one server; further addresses are queued

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

    def __init__(self, address: str, port: int, timeout: float, host: str = "") -> None:
        self.host = host or address
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
        events = (("connect", self.connected), ("first octet", self.first_octet), (end, self.ended))
        times = ", ".join(f"{event} {1000 * when:.1f} ms" for event, when in events if when is not None)
        return f"{name}{where} {found}" + (f" ({times})" if times else "")


async def check_host(
    host: str,
    port: int = 25,
    *,
    mode: str = "close",
    early: bool = False,
    timeout: float = TIMEOUT,  # noqa: ASYNC109 - passed on to each probe
) -> list[Probe]:
    """Return what is seen at each address of ``host``, a name or a literal address: at least one `Probe`.

    A host that refuses mail properly has ``all(seen.is_good for seen in …)``. A name without an address is one `Probe`
    with that fault. The arguments are those of `probe`; the system's resolver has its own timeouts. Blocking calls run
    in threads. Raises `ValueError` for an unknown ``mode``, and for a ``host`` that is not ASCII.
    """
    import asyncio

    return await asyncio.to_thread(probe_hosts, [(host, port)], partial(probe, mode=mode, early=early, timeout=timeout))


def probe(  # noqa: PLR0913 - what may differ from one check to the next
    address: str,
    port: int = 25,
    *,
    host: str = "",
    mode: str = "close",
    early: bool = False,
    text: str | None = None,
    may_be_full: bool = False,
    timeout: float = TIMEOUT,
) -> Probe:
    """Connect to a literal ``address`` and see whether it refuses mail the way the responder does in ``mode``.

    ``host``: the name that led there, if any. ``mode``: one of `MODES`, or `ANY` to go by the greeting. ``early``: send
    all commands before the greeting, in one go. ``text``: the text that the 521 must have, if any. ``may_be_full``: one
    521 and a FIN are good in each mode, the reply of a responder at its --max-sessions. ``timeout``: seconds, for all
    of it; this blocks until then at most. Faults of the network and of the server are in the result. Raises
    `ValueError` for an unknown ``mode``, and an ``address`` that is no literal one.
    """
    if mode != ANY:
        known_mode(mode)
    seen = Probe(address, port, timeout, host)
    try:
        family, sockaddr = _resolve(address, port, flags=socket.AI_NUMERICHOST)[0]
    except (OSError, UnicodeEncodeError):
        raise ValueError(f"{address!a} is not an IP address") from None
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
    seen.fault = _fault_of(seen, mode, text, may_be_full=may_be_full)
    return seen


def probe_hosts(hosts: Iterable[tuple[str, int]], prober: Callable[..., Probe] = probe) -> list[Probe]:
    """Return what is seen at each address of each host, in this order. ``prober``: `probe`, or a partial of it.

    The addresses of a name are in the system's order of preference; this blocks as long as the system's resolver does.
    """
    tasks: list[Callable[[], Probe]] = []
    for host, port in hosts:
        try:
            tasks += [partial(prober, address, port, host=host) for address in _addresses_of(host)]
        except OSError as error:
            tasks.append(partial(_unresolved, host, port, error))
    return run_all(tasks)


def run_all(tasks: Sequence[Callable[[], Probe]]) -> list[Probe]:
    """Return the tasks' results, in this order: up to `_MAX_THREADS` run at once, a single one without a thread."""
    if len(tasks) == 1:
        return [tasks[0]()]
    from concurrent.futures.thread import ThreadPoolExecutor  # slow to import; a health check does without

    try:
        with ThreadPoolExecutor(_MAX_THREADS) as threads:
            return list(threads.map(lambda task: task(), tasks))
    except RuntimeError:  # no thread can be started: run them in turn
        return [task() for task in tasks]


def _addresses_of(host: str) -> list[str]:
    try:
        _resolve(host, flags=socket.AI_NUMERICHOST)
    except OSError:
        return list(dict.fromkeys(str(sockaddr[0]) for _, sockaddr in _resolve(host)))
    return [host]  # not the result, which has lost its scope, as in fe80::1%eth0


def _resolve(host: str, port: int | None = None, flags: int = 0) -> list[tuple[int, tuple[object, ...]]]:
    # As octets: a str would be encoded as an IDN, which loads half a megabyte of tables.
    found = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]


def _unresolved(host: str, port: int, error: OSError) -> Probe:
    seen = Probe("", port, 0, host)
    seen.ending, seen.fault = UNREACHABLE, f"no address: {error.strerror}"
    return seen


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
    lacks_family = error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.ENETUNREACH)
    return NO_FAMILY if lacks_family else UNREACHABLE


def _fault_of(seen: Probe, mode: str, text: str | None, *, may_be_full: bool) -> str:
    """Return what keeps this from being a proper refusal in ``mode``, on one line, or ``""``."""
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
    if not rest:
        return ""
    if replies:
        return "octets after the last complete reply"
    return "not an SMTP reply" if is_invalid else "an incomplete reply"


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
