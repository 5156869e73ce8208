"""One connection to one address, from the SYN to the FIN: what was seen, what is wrong with it; and many at once."""

import contextlib
import errno
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from nullsmtpd.check import dialogue
from nullsmtpd.check.dialogue import ANY, Reply, Script, parse_replies, quoted
from nullsmtpd.runtime.sockets import MAX_PORT, Address

__all__ = ["MAX_OCTETS", "TIMEOUT", "Probe", "check_host", "probe", "run_all", "tasks_for"]
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

_NUMERIC = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
_MAX_THREADS = 32  # each waits for one server; further addresses are queued

# Limits of this process or host, which say nothing about the server.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_LACKS_FAMILY = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.ENETUNREACH}

# How the connection ended, after the octets received.
_THEN = {FIN: ", then FIN", RESET: ", then a reset", SILENCE: ", not closed within {timeout:g} s", LEFT: ""}


class Probe:
    """What was seen at one address.

    ``host`` is the name that led there, or the address again; ``address`` is empty for a name that has none.
    ``start`` is the time of the first SYN by `time.monotonic`; ``connected``, ``first_octet`` and ``ended`` are seconds
    since then, or `None` for what did not happen. ``ending`` is one of the constants above, ``received`` all octets,
    ``replies`` the complete replies among them, in mode `ANY` also those that no standard allows and mail servers
    accept. ``fault`` is what is wrong in a few words, or empty.
    """

    # Not a dataclass: importing dataclasses takes longer than the rest of a health check.
    connected: float | None = None
    first_octet: float | None = None
    ended: float | None = None
    received = b""
    replies: Sequence[Reply] = ()
    ending = LEFT
    fault = ""

    def __init__(self, address: str, port: int, timeout: float, host: str = "", mode: str = ANY) -> None:
        self.host = host or address
        self.address = address
        self.port = port
        self.timeout = timeout
        self.mode = mode
        self.start = time.monotonic()

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
        name = f"{self.host} " if self.host != self.address and self.address else ""
        found = f"bad: {self.fault}" if self.fault else f"good: {quoted(self.received)}, then {self.ending}"
        end = self.ending if self.ending in {FIN, RESET} else "end"
        events = (("connect", self.connected), ("first octet", self.first_octet), (end, self.ended))
        times = ", ".join(f"{event} {1000 * when:.1f} ms" for event, when in events if when is not None)
        return f"{name}{Address(self.address or self.host, self.port)} {found}" + (f" ({times})" if times else "")

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
    host: str, port: int = 25, *, mode: str = "close", early: bool = False, timeout: float = TIMEOUT
) -> list[Probe]:
    """Return what is seen at each address of ``host``, a name or a literal address: at least one `Probe`.

    A host that refuses mail properly has ``all(seen.is_good for seen in …)``. A name without an address is one `Probe`
    with that fault. The arguments are those of `probe`; the system's resolver has its own timeouts. Blocking calls run
    in threads. Raises `ValueError` for an unknown ``mode``, an impossible ``port``, and a ``host`` that is not ASCII.
    """
    import asyncio

    prober = partial(probe, mode=mode, early=early, timeout=timeout)
    return await asyncio.to_thread(lambda: run_all(tasks_for([(host, port)], prober)))


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
        dialogue.known_mode(mode)
    if not 0 < port <= MAX_PORT:  # getaddrinfo() takes it modulo 65536
        raise ValueError(f"{port} is not a port")
    try:
        family, sockaddr = _resolve(address, port, flags=socket.AI_NUMERICHOST)[0]
    except (OSError, UnicodeEncodeError):
        raise ValueError(f"{address!a} is not an IP address") from None
    scripts = [*dialogue.SCRIPTS[mode], dialogue.CLOSE] if may_be_full else dialogue.SCRIPTS[mode]
    seen = Probe(address, port, timeout, host, mode)
    try:
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(sockaddr)
            seen.connected = time.monotonic() - seen.start
            _hold_dialogue(connection, seen, scripts, dialogue.early_commands(mode) if early else [])
    except OSError as error:
        if error.errno in _EXHAUSTED:
            raise
        if seen.connected is None:
            seen.ending, seen.fault = _failure(error, timeout)
        else:
            seen.ending = SILENCE if isinstance(error, TimeoutError) else RESET
    seen.ended = time.monotonic() - seen.start
    if fault := seen.connected is not None and next(filter(None, _faults(seen, scripts, text)), ""):
        seen.fault = f"{fault}: {quoted(seen.received)}{_THEN[seen.ending].format(timeout=timeout)}"
    return seen


def tasks_for(hosts: Iterable[tuple[str, int]], prober: Callable[..., Probe]) -> list[Callable[[], Probe]]:
    """Return a task for each address of each host, in this order. ``prober``: `probe`, or a partial of it.

    The addresses of a name are in the system's order of preference; this blocks as long as the system's resolver does.
    """
    tasks: list[Callable[[], Probe]] = []
    for host, port in hosts:
        try:
            found = [socket.getnameinfo(sockaddr, _NUMERIC)[0] for _, sockaddr in _resolve(host)]  # with its scope
        except OSError as error:
            tasks.append(partial(_unresolved, host, port, error))
        else:
            tasks += [partial(prober, address, port, host=host) for address in dict.fromkeys(found)]
    return tasks


def run_all(tasks: Sequence[Callable[[], Probe]]) -> list[Probe]:
    """Return the tasks' results, in this order; up to `_MAX_THREADS` run at once."""
    from concurrent.futures.thread import ThreadPoolExecutor  # slow to import; a health check does without

    try:
        with ThreadPoolExecutor(_MAX_THREADS) as threads:
            return list(threads.map(lambda task: task(), tasks))
    except RuntimeError:  # no thread can be started: run them in turn
        return [task() for task in tasks]


def _resolve(host: str, port: int | None = None, flags: int = 0) -> list[tuple[int, Any]]:
    # As octets: a str would be encoded as an IDN, which loads half a megabyte of tables.
    found = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]


def _unresolved(host: str, port: int, error: OSError) -> Probe:
    seen = Probe("", port, 0, host)
    seen.ending, seen.fault = UNREACHABLE, f"no address: {error.strerror}"
    return seen


def _hold_dialogue(connection: socket.socket, seen: Probe, scripts: Sequence[Script], early: Sequence[str]) -> None:
    """Send the next command of a script once the reply before it has arrived and has the code that is due.

    Returns once the server has closed or enough was seen. Raises `OSError`.
    """
    own = connection.getsockname()[0].partition("%")[0]
    literal = f"[IPv6:{own}]" if ":" in own else f"[{own}]"  # RFC 5321 §4.1.3: no host name could be verified

    def send(*commands: str) -> None:
        lines = "".join(f"{command.format(own=literal)}\r\n" for command in commands)
        with contextlib.suppress(OSError):  # closed by the server; what it sent before is still to be read
            connection.sendall(lines.encode("ascii"))

    send(*early)
    while (left := seen.start + seen.timeout - time.monotonic()) > 0:
        connection.settimeout(left)
        octets = connection.recv(MAX_OCTETS + 1 - len(seen.received))
        if not octets:
            seen.ending = FIN
            return
        seen.first_octet = seen.first_octet or time.monotonic() - seen.start
        seen.received += octets
        answered = len(seen.replies)
        seen.replies, _, is_invalid = parse_replies(seen.received, lenient=seen.mode == ANY)
        for code in seen.codes[answered:]:
            scripts = dialogue.steps_after(code, scripts)
            if not scripts:
                send(dialogue.QUIT)
                return
            if scripts[0] and not early:
                send(scripts[0][0][0])
        if is_invalid or len(seen.received) > MAX_OCTETS:
            return
    raise TimeoutError


def _failure(error: OSError, timeout: float) -> tuple[str, str]:
    """Return how an attempt to connect ended, and what is wrong."""
    if isinstance(error, ConnectionRefusedError):
        return REFUSED, "connection refused: nothing listens there"
    if error.errno in _LACKS_FAMILY:
        return NO_FAMILY, f"cannot be reached from this host: {error.strerror}"
    ending = RESET if isinstance(error, ConnectionResetError) else UNREACHABLE
    return ending, error.strerror or f"no answer to the SYN within {timeout:g} s"


def _faults(seen: Probe, scripts: Sequence[Script], text: str | None) -> Iterator[str]:
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
    yield dialogue.wrong_code(seen.codes, scripts)
    if text is not None and not any(reply in (("521", text), ("521", f"5.3.2 {text}")) for reply in replies):
        yield f"the text of the 521 is not {quoted(text.encode('utf-8', 'surrogateescape'))}"
    if seen.ending != FIN:
        yield "no FIN after the reply"
