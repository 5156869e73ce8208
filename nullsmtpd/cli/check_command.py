"""``nullsmtpd check``: from its arguments to its report and its exit status."""

import contextlib
import os
from collections.abc import Iterable, Mapping

from nullsmtpd.check.health import check_health

TYPE_CHECKING = False  # as type checkers take it; `typing` itself takes longer to load than the check
if TYPE_CHECKING:
    from nullsmtpd.check.domain import DomainReport
    from nullsmtpd.check.outcome import Probe
    from nullsmtpd.cli.check import Options

__all__ = ["run"]

_STDOUT, _STDERR = 1, 2
_GOOD, _BAD, _USAGE = 0, 1, 2


def run(arguments: list[str], environment: Mapping[str, str]) -> int:
    """Check, say on stdout what was seen, and return the exit status: 0 good, 1 not, 2 a mistake in the options."""
    try:
        if arguments:
            return _run_with(arguments, environment)
        return _report_each(check_health(environment))
    except ValueError as error:
        return _say(_STDERR, f"nullsmtpd check: {error}", _USAGE)
    except (OSError, RuntimeError) as error:  # no descriptor, thread or memory left to ask with
        reason = getattr(error, "strerror", None) or error
        return _say(_STDERR, f"nullsmtpd check: cannot run: {reason}; see the limits of this process", _BAD)


def _run_with(arguments: list[str], environment: Mapping[str, str]) -> int:
    """Do the same with arguments. Raises `ValueError` as `check_health` does."""
    from nullsmtpd import __version__
    from nullsmtpd.cli.check import UsageError, help_text, parse_options
    from nullsmtpd.nullmx import MissingExtraError

    if "--help" in arguments:
        return _say(_STDOUT, help_text(), _GOOD)
    if "--version" in arguments:
        return _say(_STDOUT, f"nullsmtpd {__version__}", _GOOD)
    try:
        options = parse_options(arguments)
        domain = _check_domain(options)
    except (UsageError, MissingExtraError) as error:
        return _say(_STDERR, f"nullsmtpd check: {error}", _USAGE)
    probes = _probe(options, environment)
    if not options.json and not domain:
        return _report_each(probes)
    probes = list(probes)
    is_good = all(seen.is_good for seen in probes) and all(report.is_good for report in domain)
    for line in _lines(options, probes, domain, is_good=is_good):
        _say(_STDOUT, line, _GOOD)
    return _GOOD if is_good else _BAD


def _check_domain(options: "Options") -> "list[DomainReport]":
    """Return the one report on a domain, or none. Raises `MissingExtraError`."""
    if options.domain is None:
        return []
    import asyncio

    from nullsmtpd.check.domain import check_domain
    from nullsmtpd.check.probe import TIMEOUT
    from nullsmtpd.nullmx import need_extra

    need_extra()
    timeout = options.timeout or TIMEOUT
    with asyncio.Runner() as runner:
        runner.get_loop()  # where there can be none, before there is anything to run
        report = check_domain(options.domain, port=options.port, resolver=options.resolver, timeout=timeout)
        return [runner.run(report)]


def _probe(options: "Options", environment: Mapping[str, str]) -> "Iterable[Probe]":
    from functools import partial

    from nullsmtpd.check.hosts import probe_hosts
    from nullsmtpd.check.probe import TIMEOUT, probe

    if not options.hosts and options.domain is None:
        return check_health(environment, mode=options.mode, early=options.early, timeout=options.timeout)
    ask = partial(probe, mode=options.mode or "close", early=options.early, timeout=options.timeout or TIMEOUT)
    return probe_hosts(options.hosts, ask)


def _lines(options: "Options", probes: "list[Probe]", domain: "list[DomainReport]", *, is_good: bool) -> list[str]:
    from nullsmtpd.check.report import as_json, domain_lines

    if options.json:
        return [as_json(probes, domain[0] if domain else None, is_good=is_good)]
    return [*map(str, probes), *domain_lines(domain[0])]


def _report_each(probes: "Iterable[Probe]") -> int:
    """Say of each what was seen as soon as it is known: who kills a check that hangs shall read what it found."""
    status = _GOOD
    for seen in probes:
        status = _say(_STDOUT, str(seen), status if seen.is_good else _BAD)
    return status


def _say(descriptor: int, line: str, status: int) -> int:
    """Write a line, whether or not anyone reads it; return the exit status."""
    with contextlib.suppress(OSError):
        os.write(descriptor, f"{line}\n".encode("ascii", "backslashreplace"))
    return status
