"""``nullsmtpd check``: from its arguments to its report and its exit status."""

import contextlib
import os
from collections.abc import Mapping
from functools import partial

from nullsmtpd.check.health import check_health
from nullsmtpd.check.hosts import probe_host
from nullsmtpd.check.probe import Probe, probe

__all__ = ["run"]

_STDOUT, _STDERR = 1, 2
_GOOD, _BAD, _USAGE = 0, 1, 2


def run(arguments: list[str], environment: Mapping[str, str]) -> int:
    """Check, say on stdout what was seen, and return the exit status: 0 good, 1 not, 2 a mistake in the options."""
    if arguments:
        return _run_with(arguments, environment)
    try:
        return _report(check_health(environment))
    except ValueError as error:
        return _say(_STDERR, f"nullsmtpd check: {error}", _USAGE)


def _run_with(arguments: list[str], environment: Mapping[str, str]) -> int:
    from nullsmtpd import __version__
    from nullsmtpd.check.options import UsageError, help_text, parse_options

    if "--help" in arguments:
        return _say(_STDOUT, help_text().rstrip("\n"), _GOOD)
    if "--version" in arguments:
        return _say(_STDOUT, f"nullsmtpd {__version__}", _GOOD)
    try:
        options = parse_options(arguments)
        if not options.hosts:
            return _report(check_health(environment, mode=options.mode, early=options.early, timeout=options.timeout))
    except (UsageError, ValueError) as error:
        return _say(_STDERR, f"nullsmtpd check: {error}", _USAGE)
    ask = partial(probe, mode=options.mode or "close", early=options.early, timeout=options.timeout)
    return _report([seen for host, port in options.hosts for seen in probe_host(host, port, ask)])


def _report(probes: list[Probe]) -> int:
    for seen in probes:
        _say(_STDOUT, str(seen), _GOOD)
    return _GOOD if all(seen.is_good for seen in probes) else _BAD


def _say(descriptor: int, line: str, status: int) -> int:
    """Write a line, whether or not anyone reads it; return the exit status."""
    with contextlib.suppress(OSError):
        os.write(descriptor, f"{line}\n".encode("ascii", "backslashreplace"))
    return status
