"""``nullsmtpd check``: its options, a container's health check, the output and the exit status.

The health check runs every few seconds: it imports no event loop, and no argument parser.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, NoReturn, TypeVar

from nullsmtpd import __version__
from nullsmtpd.check.dialogue import known_mode
from nullsmtpd.check.probe import NO_FAMILY, TIMEOUT, Probe, probe, probe_hosts
from nullsmtpd.cli.command import STDERR, STDOUT, print_line
from nullsmtpd.runtime.sockets import parse_address, parse_target

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from nullsmtpd.check.domain import DomainReport

__all__ = ["BUDGET", "check_health", "make_parser", "run"]

#: Seconds for all addresses of a health check together, an equal part for each. A container engine kills a check that
#: exceeds its timeout, 5 s in our image, and its output is lost; the rest is for starting Python on a busy host.
BUDGET = 4.0

_GOOD, _BAD, _USAGE = 0, 1, 2

# Where to connect to when the responder listens on all addresses of a family.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound here

_SMTP_PORT = 25
_T = TypeVar("_T")

_DESCRIPTION = """\
Connect to each address of HOST, and check that it refuses mail properly: one
complete 521 reply, then FIN. Without HOST and --domain: the addresses in
NULLSMTPD_LISTEN, as a container's health check.

With --domain: check what NAME publishes about mail (null MX, SPF, DMARC, and
records that contradict a refusal), connect to each address that its mail may
go to, and report what the sender of a message experiences.
"""

_EPILOG = """\
exit status:
  0  all good: mail is refused at once, and nothing published contradicts that
  1  not good, or the check cannot run
  2  invalid options or environment

Nagios and Icinga take 1 for WARNING and 2 for CRITICAL. A command_line that
makes a bad host CRITICAL, with "negate" of the monitoring plugins:
  negate -w CRITICAL /usr/bin/nullsmtpd check $HOSTADDRESS$
The output has no vertical bar, where performance data would begin.
"""


def run(arguments: list[str], environment: Mapping[str, str]) -> int:
    """Check, report on stdout, and return the exit status, see --help."""
    try:
        return _run(arguments, environment) if arguments else _report_each(check_health(environment))
    except ValueError as error:  # invalid options or environment
        return _print(f"nullsmtpd check: {error}", _USAGE, STDERR)
    except ImportError as error:  # the installation is damaged
        return _print(f"nullsmtpd check: cannot run: {error}", _BAD, STDERR)
    except (OSError, RuntimeError, MemoryError) as error:  # out of file descriptors, threads or memory
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return _print(f"nullsmtpd check: cannot run: {reason}; see the limits of this process", _BAD, STDERR)


def _run(arguments: list[str], environment: Mapping[str, str]) -> int:
    parser = make_parser()
    if {"-h", "--help"} & set(arguments):
        return _print(parser.format_help().rstrip(), _GOOD)
    if "--version" in arguments:
        return _print(f"nullsmtpd {__version__}", _GOOD)
    options = _parse_options(parser, arguments)
    probes = _probe(options, environment)
    reports = _check_domains(options) if options.domain else ()
    strict = options.strict
    if options.json:
        import json

        hosts, domains = list(probes), list(reports)
        is_good = all(seen.is_good for seen in hosts) and all(report.passes(strict=strict) for report in domains)
        found: dict[str, object] = {"good": is_good, "hosts": [seen.as_json() for seen in hosts]}
        if domains:
            found["domains"] = [report.as_json(strict=strict) for report in domains]
        return _print(json.dumps(found).replace("|", "\\u007c"), _GOOD if is_good else _BAD)
    status = _report_each(probes)
    for report in reports:
        lines = "\n".join(report.lines(strict=strict))
        status = _print(lines, status if report.passes(strict=strict) else _BAD)
    return status


def _parse_options(parser: "ArgumentParser", arguments: list[str]) -> "Namespace":
    """Return the options. Raises `ValueError`, also for a missing extra, and for a flag that would have no effect."""
    from nullsmtpd.nullmx import MissingExtraError, load_extra

    try:
        options = parser.parse_intermixed_args(arguments)
        if options.domain:
            load_extra()
    except MissingExtraError as error:
        raise ValueError(str(error)) from None
    needed = dict.fromkeys(("resolver", "sends", "strict", "allow_private"), "" if options.domain else "--domain")
    needed["port"] = "" if options.domain or options.hosts else "HOST or --domain"
    needed |= dict.fromkeys(("early", "mode"), "HOST" if options.domain and not options.hosts else "")
    for name, other in needed.items():
        if other and getattr(options, name):
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} is for {other} only; give that too, or leave {flag} out")
    return options


def _probe(options: "Namespace", environment: Mapping[str, str]) -> "Iterable[Probe]":
    """Probe the hosts that are named, or without any those of the environment. Raises `ValueError`."""
    if not options.hosts and not options.domain:
        return check_health(environment, mode=options.mode, early=options.early, timeout=options.timeout)
    parse = partial(_host, default_port=options.port or _SMTP_PORT)
    hosts = dict.fromkeys(_parse("HOST", text, parse) for text in options.hosts)
    mode, timeout = options.mode or "close", options.timeout or TIMEOUT
    return probe_hosts(hosts, partial(probe, mode=mode, early=options.early, timeout=timeout))


def _check_domains(options: "Namespace") -> "Iterator[DomainReport]":
    from nullsmtpd.runtime.event_loop import import_without_openssl

    import_without_openssl("asyncio")
    import asyncio

    from nullsmtpd.check.domain import check_domain

    for descriptor in os.pipe() + os.pipe():  # an event loop takes three, and prints a traceback if there are fewer
        os.close(descriptor)
    arguments = {name: getattr(options, name) for name in ("resolver", "sends", "allow_private")}
    arguments |= {"port": options.port or _SMTP_PORT, "timeout": options.timeout or TIMEOUT}
    with asyncio.Runner() as runner:
        for domain in dict.fromkeys(options.domain):
            yield runner.run(check_domain(domain, **arguments))


def _report_each(probes: "Iterable[Probe]") -> int:
    """Print each result as soon as it is known: when a check that hangs is killed, those before it remain."""
    status = _GOOD
    for seen in probes:
        status = _print(str(seen), status if seen.is_good else _BAD)
    return status


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
    probes = []
    for host in hosts:
        for seen in probe_hosts([host], prober):
            probes.append(seen)
            if seen.ending != NO_FAMILY:
                yield seen
    if all(seen.ending == NO_FAMILY for seen in probes):
        yield from probes


def _hosts_of(entry: str) -> list[tuple[str, int]]:
    host, port = parse_address(entry)
    if not port:
        raise ValueError("has port 0, for which the kernel chooses one; give check HOST:PORT")
    return [(name, port) for name in (_LOOPBACK.values() if host is None else [_LOOPBACK.get(host, host)])]


def make_parser() -> "ArgumentParser":
    """Return a parser that raises `ValueError`."""
    from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter

    from nullsmtpd.cli.arguments import positive_seconds, shown
    from nullsmtpd.nullmx import domain_of, resolver_address

    class Parser(ArgumentParser):
        def error(self, message: str) -> NoReturn:
            line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in message)
            raise ValueError(line.removeprefix("argument ") + ("" if ";" in line else "; see --help"))

    def typed(parse: Callable[[str], _T]) -> Callable[[str], _T]:
        def checked(text: str) -> _T:
            try:
                return parse(text)
            except ValueError as error:
                raise ArgumentTypeError(f"{shown(text)} {error}") from None

        return checked

    parser = Parser(
        *("nullsmtpd check", None, _DESCRIPTION, _EPILOG),
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )

    add = parser.add_argument
    add("hosts", metavar="HOST[:PORT]", nargs="*", help="what to connect to: a name, an IPv4 or an IPv6 address")
    seconds = f"{TIMEOUT:g}; as a health check {BUDGET:g} for all addresses"
    help_text = f"for one address, and for one DNS query (default: {seconds})"
    add("--timeout", metavar="SECONDS", type=typed(positive_seconds), help=help_text)
    add("--early", action="store_true", help="send EHLO and MAIL before the greeting; the same reply is due")
    help_text = "how HOST should refuse: close (the default), session or mail; as a health check that of NULLSMTPD_MODE"
    add("--mode", metavar="MODE", type=typed(known_mode), help=help_text)
    add("--json", action="store_true", help="print one line of JSON")
    help_text = "domains to check; needs the extra [relay] of the distribution"
    add("--domain", metavar="NAME", nargs="+", action="extend", type=typed(domain_of), help=help_text)
    add("--sends", action="store_true", help="the domains send mail, even if no SPF record says so")
    add("--strict", action="store_true", help="advice about a domain makes it bad, too")
    help_text = "treat private, loopback and other addresses that are not on the public Internet like all others"
    add("--allow-private", action="store_true", help=help_text)
    add("--port", metavar="PORT", type=typed(_port), help="for --domain and each HOST without a port (default: 25)")
    help_text = "the name server for --domain (default: those of /etc/resolv.conf)"
    add("--resolver", metavar="ADDR[:PORT]", type=typed(resolver_address), help=help_text)
    add("--version", action="store_true", help="print the version and exit")
    add("-h", "--help", action="store_true", help="print this and exit")
    return parser


def _port(text: str) -> int:
    with contextlib.suppress(ValueError):
        if port := parse_address(f":{text}").port:
            return port
    raise ValueError("is not a port; give a number from 1 to 65535")


def _host(text: str, default_port: int) -> tuple[str, int]:
    """Parse ``HOST``, ``HOST:PORT``, ``[v6]:PORT`` or an IPv6 address with or without brackets. Raises `ValueError`."""
    host, port = parse_target(text, default_port)
    if host is None or not port:
        raise ValueError("is nothing to connect to; give HOST, HOST:PORT or [v6]:PORT")
    return host, port


def _parse(source: str, text: str, parse: Callable[[str], _T]) -> _T:
    try:
        return parse(text)
    except ValueError as error:
        from nullsmtpd.cli.arguments import shown

        raise ValueError(f"{source}: {shown(text)} {error}") from None


def _print(text: str, status: int, descriptor: int = STDOUT) -> int:
    """Print a line without "|", which begins performance data in the output of a Nagios plugin; return the status."""
    return print_line(descriptor, text.replace("|", "\\x7c"), status)
