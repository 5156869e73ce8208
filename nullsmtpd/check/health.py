"""A container's health check: where the responder of this environment should answer, and how."""

import socket
from collections.abc import Iterator, Mapping
from functools import partial

from nullsmtpd.check.dialogue import known_mode
from nullsmtpd.check.hosts import probe_hosts
from nullsmtpd.check.outcome import NO_FAMILY, Probe
from nullsmtpd.check.probe import probe

__all__ = ["check_health"]

# What to connect to where the responder was told to listen on all addresses of a family.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound here

_MAX_PORT = 65535

#: Seconds for all addresses together, an equal part for each. A container engine kills a check that takes longer than
#: its timeout, 5 s in our image, and then nobody learns what hangs; what remains is for an interpreter on a busy host.
BUDGET = 4.0


def check_health(
    environment: Mapping[str, str], *, mode: str | None = None, early: bool = False, timeout: float | None = None
) -> Iterator[Probe]:
    """Return an iterator that connects to every address in NULLSMTPD_LISTEN and gives what was seen there at once.

    Loopback stands for all addresses. NULLSMTPD_MODE, unless there is a ``mode``, and NULLSMTPD_TEXT say what is due;
    other variables do not matter. A responder past its --max-sessions is well: no reason to restart it. ``timeout``:
    seconds for each address; `None` for its part of `BUDGET`. Raises `ValueError`, before any is asked, with one line
    that names the variable, when it is wrong or names nothing to connect to.
    """
    mode = mode or _mode(environment.get("NULLSMTPD_MODE", "close"))
    entries = [_hosts(*_parse(entry)) for entry in environment.get("NULLSMTPD_LISTEN", ":25").split(",")]
    timeout = timeout or BUDGET / sum(map(len, entries))
    text = environment.get("NULLSMTPD_TEXT")
    ask = partial(probe, mode=mode, early=early, text=text, may_be_full=True, timeout=timeout)
    return (seen for hosts in entries for seen in _probe_entry(hosts, ask))


def _hosts(host: str | None, port: int) -> list[tuple[str, int]]:
    """Return what to connect to for one entry."""
    hosts = _LOOPBACK.values() if host is None else [_LOOPBACK.get(host, host)]
    return [(host, port) for host in hosts]


def _probe_entry(hosts: list[tuple[str, int]], ask: partial[Probe]) -> Iterator[Probe]:
    """See one entry's addresses. Like the responder, forgive a family that this host lacks if another is there."""
    lacking: list[Probe] = []
    is_any_there = False
    for host in hosts:
        for seen in probe_hosts([host], ask):
            if seen.ending == NO_FAMILY:
                lacking.append(seen)
            else:
                is_any_there = True
                yield seen
    if not is_any_there:
        yield from lacking


def _mode(text: str) -> str:
    try:
        return known_mode(text)
    except ValueError as error:
        raise ValueError(f"NULLSMTPD_MODE: {text!a} {error}") from None


def _parse(entry: str) -> tuple[str | None, int]:
    """Read an entry as the responder does: its own parser takes what is not plain, and says what is wrong."""
    host, colon, port = entry.rpartition(":")
    is_plain = colon and _is_port(port) and (not host or _is_ipv4(host))
    address = (host or None, int(port)) if is_plain else _parse_with_care(entry)
    if not address[1]:
        raise ValueError(f"NULLSMTPD_LISTEN: {entry!a} lets the kernel choose a port; give check HOST:PORT")
    return address


def _parse_with_care(entry: str) -> tuple[str | None, int]:
    from nullsmtpd.runtime.sockets import parse_address  # takes longer to load than all of the above

    try:
        return parse_address(entry)
    except ValueError as error:
        raise ValueError(f"NULLSMTPD_LISTEN: {entry!a} {error}") from None


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= len(str(_MAX_PORT)) and int(text) <= _MAX_PORT


def _is_ipv4(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET, host)
    except (OSError, ValueError):
        return False
    return True
