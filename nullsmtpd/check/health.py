"""A container's health check: where the responder of this environment should answer, and how."""

import socket
from collections.abc import Mapping
from functools import partial

from nullsmtpd.check.hosts import probe_hosts
from nullsmtpd.check.modes import known_mode
from nullsmtpd.check.outcome import NO_FAMILY, Probe
from nullsmtpd.check.probe import TIMEOUT, probe

__all__ = ["check_health"]

# What to connect to where the responder was told to listen on all addresses of a family.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound here

_MAX_PORT = 65535


def check_health(
    environment: Mapping[str, str], *, mode: str | None = None, early: bool = False, timeout: float = TIMEOUT
) -> list[Probe]:
    """Connect to every address in NULLSMTPD_LISTEN and return what was seen; loopback stands for all addresses.

    NULLSMTPD_MODE, unless there is a ``mode``, and NULLSMTPD_TEXT say what is due; other variables do not matter. A
    responder past its --max-sessions is well: no reason to restart it.
    Raises `ValueError` with one line that names the variable, when it is wrong or names nothing to connect to.
    """
    mode = mode or _mode(environment.get("NULLSMTPD_MODE", "close"))
    entries = environment.get("NULLSMTPD_LISTEN", ":25").split(",")
    text = environment.get("NULLSMTPD_TEXT")
    ask = partial(probe, mode=mode, early=early, text=text, may_be_full=True, timeout=timeout)
    targets = [_parse(entry) for entry in entries]  # a mistake in one is said before any is asked
    return [seen for host, port in targets for seen in _probe_entry(host, port, ask)]


def _probe_entry(host: str | None, port: int, ask: partial[Probe]) -> list[Probe]:
    """See one entry's addresses. Like the responder, forgive a family that this host lacks if another is there."""
    hosts = list(_LOOPBACK.values()) if host is None else [_LOOPBACK.get(host, host)]
    probes = [seen for host in hosts for seen in probe_hosts([(host, port)], ask)]
    return [seen for seen in probes if seen.ending != NO_FAMILY] or probes


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
    from nullsmtpd.listeners import parse_address  # takes longer to load than all of the above

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
