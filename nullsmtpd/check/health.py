"""A container's health check: the responder has to answer at each address that the environment configures.

It runs every few seconds: no event loop is imported, and no argument parser.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeVar

from nullsmtpd.check.dialogue import known_mode
from nullsmtpd.check.probe import NO_FAMILY, Probe, probe, probe_hosts
from nullsmtpd.runtime.sockets import parse_address

__all__ = ["BUDGET", "check_health"]

# Where to connect to when the responder listens on all addresses of a family.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound here

#: Seconds for all addresses together, an equal part for each. A container engine kills a check that exceeds its
#: timeout, 5 s in our image, and its output is lost; the rest is for starting the interpreter on a busy host.
BUDGET = 4.0

_T = TypeVar("_T")


def check_health(
    environment: Mapping[str, str], *, mode: str | None = None, early: bool = False, timeout: float | None = None
) -> Iterator[Probe]:
    """Return an iterator that probes every address in NULLSMTPD_LISTEN in turn.

    Loopback stands for all addresses. NULLSMTPD_MODE, unless ``mode`` is given, and NULLSMTPD_TEXT state what is due;
    other variables are ignored. A responder at its --max-sessions is healthy: restarting it would not help. A family
    that this host lacks is no fault as long as an entry has another, as for the responder. ``timeout``: seconds for
    each address; `None` for its part of `BUDGET`. Raises `ValueError`, before any connection, with one line that names
    the variable, when that is invalid or names nothing to connect to.
    """
    mode = mode or _parse("NULLSMTPD_MODE", environment.get("NULLSMTPD_MODE", "close"), known_mode)
    listen = environment.get("NULLSMTPD_LISTEN", ":25").split(",")
    entries = [_parse("NULLSMTPD_LISTEN", entry, _hosts_of) for entry in listen]
    timeout = timeout or BUDGET / sum(map(len, entries))
    text = environment.get("NULLSMTPD_TEXT")
    prober = partial(probe, mode=mode, early=early, text=text, may_be_full=True, timeout=timeout)
    return (seen for hosts in entries for seen in _probe_entry(hosts, prober))


def _probe_entry(hosts: list[tuple[str, int]], prober: Callable[..., Probe]) -> Iterator[Probe]:
    lacking: list[Probe] = []
    has_family = False
    for seen in (seen for host in hosts for seen in probe_hosts([host], prober)):
        if seen.ending == NO_FAMILY:
            lacking.append(seen)
        else:
            has_family = True
            yield seen
    if not has_family:
        yield from lacking


def _hosts_of(entry: str) -> list[tuple[str, int]]:
    host, port = parse_address(entry)
    if not port:
        raise ValueError("has port 0, for which the kernel chooses one; give check HOST:PORT")
    return [(name, port) for name in (_LOOPBACK.values() if host is None else [_LOOPBACK.get(host, host)])]


def _parse(variable: str, text: str, parse: Callable[[str], _T]) -> _T:
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{variable}: {text!a} {error}") from None
