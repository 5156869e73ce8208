"""One connection to one address, from the SYN to the FIN: what was seen, what is wrong with it; and many at once."""

import contextlib
import errno
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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

_MAX_PORT = 65535
_MAX_THREADS = 32  # each waits for one server; further addresses are queued

# Limits of this process or host, which say nothing about the server.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

# How the connection ended, after the octets received.
_THEN = {FIN: ", then FIN", RESET: ", then a reset", SILENCE: ", not closed within {timeout:g} s", LEFT: ""}


class Probe:
    """What was seen at one address.

    ``host`` is the name that led there, or the address again; ``address`` is empty for a name that has none.
    ``connected``, ``first_octet`` and ``ended`` are seconds since the first SYN, or `None` for what did not happen.
    ``ending`` is one of the constants above, ``received`` all octets, ``replies`` the complete replies among them, in
    mode `ANY` also those that no standard allows and mail servers accept.
    ``fault`` is what is wrong in a few words, or empty.
    """

    # Not a dataclass: importing dataclasses takes longer than the rest of a health check.
    connected: float | None = None
    first_octet: float | None = None
    ended: float | None = None
    received = b""
    replies: Sequence[Reply] = ()
    ending = LEFT
    reason = fault = ""

    def __init__(self, address: str, port: int, timeout: float, host: str = "") -> None:
        self.host = host or address
        self.address = address
        self.port = port
        self.timeout = timeout

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

    def as_json(self) -> dict[str, object]:
        """Return an object for JSON. Times are in milliseconds; octets are text, one character for each of them."""
        times = {"connect_ms": self.connected, "first_octet_ms": self.first_octet, "end_ms": self.ended}
        return {
            "host": self.host,
            "address": self.address or None,
            "port": self.port,
            "family": ("IPv6" if ":" in self.address else "IPv4") if self.address else None,
            "good": self.is_good,
            "fault": self.fault or None,
            "received": self.received.decode("latin-1"),
            "replies": [{"code": int(reply.code), "text": reply.text} for reply in self.replies],
            "ending": self.ending,
            **{name: when and round(1000 * when, 3) for name, when in times.items()},
        }


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
    in threads. Raises `ValueError` for an unknown ``mode``, an impossible ``port``, and a ``host`` that is not ASCII.
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
    `ValueError` for an unknown ``mode``, an impossible ``port``, and an ``address`` that is no literal one, and
    `OSError` when out of file descriptors or memory.
    """
    if mode != ANY:
        known_mode(mode)
    if not 0 < port <= _MAX_PORT:  # getaddrinfo() takes it modulo 65536
        raise ValueError(f"{port} is not a port")
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
            _hold_dialogue(connection, start, seen, mode, early=early and mode != ANY, may_be_full=may_be_full)
    except OSError as error:
        if error.errno in _EXHAUSTED:
            raise
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


def _hold_dialogue(  # noqa: PLR0913 - what `probe` has decided
    connection: socket.socket, start: float, seen: Probe, mode: str, *, early: bool, may_be_full: bool
) -> None:
    """Send the script's next command once the reply before it has arrived and has the code that is due.

    Returns once the server has closed or enough was seen. Raises `OSError`.
    """
    own = connection.getsockname()[0].partition("%")[0]
    literal = f"[IPv6:{own}]" if ":" in own else f"[{own}]"  # RFC 5321 §4.1.3: no host name could be verified

    def send(*commands: str) -> None:
        lines = "".join(f"{command.format(own=literal)}\r\n" for command in commands)
        with contextlib.suppress(OSError):  # closed by the server; what it sent before is still to be read
            connection.sendall(lines.encode("ascii"))

    if early:
        send(*early_commands(mode))
    answered = 0
    while octets := _receive(connection, start + seen.timeout, MAX_OCTETS + 1 - len(seen.received)):
        if seen.first_octet is None:
            seen.first_octet = time.monotonic() - start
        seen.received += octets
        seen.replies, _, is_invalid = parse_replies(seen.received, lenient=mode == ANY)
        codes = seen.codes
        script = script_for(mode, codes, may_be_full=may_be_full)
        if codes != [due for _, due in script[: len(codes)]]:
            send(QUIT)
            return
        if not early:
            for command, _ in script[answered + 1 : len(codes) + 1]:
                send(command)
        answered = len(codes)
        if is_invalid or len(seen.received) > MAX_OCTETS:
            return
    seen.ending = FIN


def _receive(connection: socket.socket, deadline: float, size: int) -> bytes:
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    connection.settimeout(left)
    return connection.recv(size)


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
        known = {
            REFUSED: "connection refused: nothing listens there",
            NO_FAMILY: f"cannot be reached from this host: {seen.reason}",
        }
        return known.get(seen.ending) or seen.reason or f"no answer to the SYN within {seen.timeout:g} s"
    fault = next(filter(None, _faults(seen, mode, text, may_be_full=may_be_full)), "")
    return fault and f"{fault}: {quoted(seen.received)}{_THEN[seen.ending].format(timeout=seen.timeout)}"


def _faults(seen: Probe, mode: str, text: str | None, *, may_be_full: bool) -> Iterator[str]:
    """Yield what is wrong with a dialogue, the first fault first, and empty strings."""
    if not seen.received:
        yield "no data received"
    if len(seen.received) > MAX_OCTETS:
        yield f"more than {MAX_OCTETS} octets"
    replies, rest, is_invalid = parse_replies(seen.received)
    if rest and replies:
        yield "octets after the last complete reply"
    if rest:
        yield "not an SMTP reply" if is_invalid else "an incomplete reply"
    if seen.codes != ["521"] or not (may_be_full or mode == ANY):  # else good without the 221 of mode session, too
        yield _wrong_code(seen.codes, script_for(mode, seen.codes, may_be_full=may_be_full))
    if text is not None and not any(reply in (("521", text), ("521", f"5.3.2 {text}")) for reply in replies):
        yield f"the text of the 521 is not {quoted(text.encode('utf-8', 'surrogateescape'))}"
    if seen.ending != FIN:
        yield "no FIN after the reply"


def _wrong_code(codes: list[str], script: Sequence[tuple[str, str]]) -> str:
    for step, (command, due) in enumerate(script):
        reply = f"the reply to {command.partition(' ')[0]}" if command else "the greeting"
        if step == len(codes):
            return f"{reply} is missing"
        if codes[step] != due:
            return f"{reply} is {codes[step]}, not {due}"
    return "one reply too many" if len(codes) > len(script) else ""
