"""``nullsmtpd check``: its options, its output and its exit status."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NoReturn, TypeVar

from nullsmtpd.check.dialogue import known_mode
from nullsmtpd.check.health import BUDGET, check_health
from nullsmtpd.check.probe import TIMEOUT
from nullsmtpd.cli.command import STDERR, STDOUT, print_line
from nullsmtpd.runtime.sockets import parse_address

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from nullsmtpd.check.domain import DomainReport
    from nullsmtpd.check.probe import Probe

__all__ = ["make_parser", "run"]

_GOOD, _BAD, _USAGE = 0, 1, 2

_SMTP_PORT = 25
_T = TypeVar("_T")

_TIMEOUT = (
    f"for one address, and for one DNS query (default: {TIMEOUT:g}; as a health check {BUDGET:g} for all addresses)"
)
_MODE = "how HOST should refuse: close (the default), session or mail; as a health check that of NULLSMTPD_MODE"
_DOMAIN = "domains to check; needs the extra [relay] of the distribution"
_ALLOW_PRIVATE = "treat private, loopback and other addresses that are not on the public Internet like all others"
_RESOLVER = "the name server for --domain (default: those of /etc/resolv.conf)"

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
  1  not good
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
    except ValueError as error:  # an invalid environment
        return _print(f"nullsmtpd check: {error}", _USAGE, STDERR)
    except (OSError, RuntimeError) as error:  # out of file descriptors, threads or memory
        reason = getattr(error, "strerror", None) or error
        return _print(f"nullsmtpd check: cannot run: {reason}; see the limits of this process", _BAD, STDERR)


def _run(arguments: list[str], environment: Mapping[str, str]) -> int:
    from nullsmtpd import __version__
    from nullsmtpd.cli.arguments import UsageError
    from nullsmtpd.nullmx import MissingExtraError, need_extra

    parser = make_parser()
    if {"-h", "--help"} & set(arguments):
        return _print(parser.format_help().rstrip(), _GOOD)
    if "--version" in arguments:
        return _print(f"nullsmtpd {__version__}", _GOOD)
    try:
        options = parser.parse_intermixed_args(arguments)
        _reject_unused_flags(options)
        probes = _probe(options, environment)
        if options.domain:
            need_extra()
    except (UsageError, MissingExtraError) as error:
        return _print(f"nullsmtpd check: {error}", _USAGE, STDERR)
    if not options.json and not options.domain:
        return _report_each(probes)
    from nullsmtpd.check.report import as_json, domain_lines

    probes, reports = list(probes), []
    if not options.json:
        _report_each(probes)
    for report in _check_domains(options) if options.domain else ():
        reports.append(report)
        if not options.json:
            _print("\n".join(domain_lines(report, strict=options.strict)), _GOOD)
    is_good = all(seen.is_good for seen in probes) and all(report.passes(strict=options.strict) for report in reports)
    if options.json:
        _print(as_json(probes, reports, is_good=is_good, strict=options.strict).replace("|", "\\u007c"), _GOOD)
    return _GOOD if is_good else _BAD


def _probe(options: "Namespace", environment: Mapping[str, str]) -> "Iterable[Probe]":
    """Probe the hosts that are named, or without any those of the environment. Raises `UsageError`, `ValueError`."""
    from functools import partial

    from nullsmtpd.check.hosts import probe_hosts
    from nullsmtpd.check.probe import probe

    if not options.hosts and not options.domain:
        return check_health(environment, mode=options.mode, early=options.early, timeout=options.timeout)
    hosts = dict.fromkeys(_host(text, options.port or _SMTP_PORT) for text in options.hosts)
    prober = partial(probe, mode=options.mode or "close", early=options.early, timeout=options.timeout or TIMEOUT)
    return probe_hosts(hosts, prober)


def _check_domains(options: "Namespace") -> "Iterator[DomainReport]":
    import asyncio
    from functools import partial

    from nullsmtpd.check.domain import check_domain

    for descriptor in os.pipe() + os.pipe():  # an event loop takes three, and prints a traceback if there are fewer
        os.close(descriptor)
    check = partial(check_domain, port=options.port or _SMTP_PORT, timeout=options.timeout or TIMEOUT)
    with asyncio.Runner() as runner:
        for domain in dict.fromkeys(options.domain):
            report = check(domain, resolver=options.resolver, sends=options.sends, allow_private=options.allow_private)
            yield runner.run(report)


def _report_each(probes: "Iterable[Probe]") -> int:
    """Print each result as soon as it is known: when a check that hangs is killed, those before it remain."""
    status = _GOOD
    for seen in probes:
        status = _print(str(seen), status if seen.is_good else _BAD)
    return status


def make_parser() -> "ArgumentParser":
    """Return a parser that raises `UsageError`."""
    from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter

    from nullsmtpd.cli.arguments import UsageError, positive_seconds, shown
    from nullsmtpd.nullmx import domain_of, resolver_address

    class Parser(ArgumentParser):
        def error(self, message: str) -> NoReturn:
            line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in message)
            raise UsageError(line.removeprefix("argument ") + ("" if ";" in line else "; see --help"))

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
    add("--timeout", metavar="SECONDS", type=typed(positive_seconds), help=_TIMEOUT)
    add("--early", action="store_true", help="send EHLO and MAIL before the greeting; the same reply is due")
    add("--mode", metavar="MODE", type=typed(known_mode), help=_MODE)
    add("--json", action="store_true", help="print one line of JSON")
    add("--domain", metavar="NAME", nargs="+", action="extend", type=typed(domain_of), help=_DOMAIN)
    add("--sends", action="store_true", help="the domains send mail, even if no SPF record says so")
    add("--strict", action="store_true", help="advice about a domain makes it bad, too")
    add("--allow-private", action="store_true", help=_ALLOW_PRIVATE)
    add("--port", metavar="PORT", type=typed(_port), help="for --domain and each HOST without a port (default: 25)")
    add("--resolver", metavar="ADDR[:PORT]", type=typed(resolver_address), help=_RESOLVER)
    add("--version", action="store_true", help="print the version and exit")
    add("-h", "--help", action="store_true", help="print this and exit")
    return parser


def _reject_unused_flags(options: "Namespace") -> None:
    """Raise `UsageError` for a flag that would have no effect."""
    from nullsmtpd.cli.arguments import UsageError

    needed = dict.fromkeys(("resolver", "sends", "strict", "allow_private"), "" if options.domain else "--domain")
    needed["port"] = "" if options.domain or options.hosts else "HOST or --domain"
    needed |= dict.fromkeys(("early", "mode"), "HOST" if options.domain and not options.hosts else "")
    for name, other in needed.items():
        if other and getattr(options, name):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} is for {other} only; give that too, or leave {flag} out")


def _port(text: str) -> int:
    try:
        port = parse_address(f":{text}").port
    except ValueError:
        port = 0
    if not port:
        raise ValueError("is not a port; give a number from 1 to 65535")
    return port


def _host(text: str, default_port: int) -> tuple[str, int]:
    """Parse ``HOST``, ``HOST:PORT``, ``[v6]:PORT`` or an IPv6 address with or without brackets. Raises `UsageError`."""
    from nullsmtpd.cli.arguments import UsageError, shown

    address = f"[{text}]" if text.count(":") > 1 and not text.startswith("[") else text
    if address.endswith("]") or ":" not in address:
        address = f"{address}:{default_port}"
    try:
        host, port = parse_address(address)
    except ValueError as error:
        raise UsageError(f"HOST: {shown(text)} {error}") from None
    if host is None or not port:
        raise UsageError(f"HOST: {shown(text)} is nothing to connect to; give HOST, HOST:PORT or [v6]:PORT")
    return host, port


def _print(text: str, status: int, descriptor: int = STDOUT) -> int:
    """Print a line without "|", which begins performance data in the output of a Nagios plugin; return the status."""
    return print_line(descriptor, text.replace("|", "\\x7c"), status)
