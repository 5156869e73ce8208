"""``nullsmtpd check``: its options, its output and its exit status."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, NoReturn, TypeVar

from nullsmtpd.check.dialogue import known_mode
from nullsmtpd.check.health import BUDGET, check_health
from nullsmtpd.check.probe import TIMEOUT, probe, probe_hosts
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
    except (ValueError, ImportError) as error:  # invalid options or environment, or the extra is missing
        return _print(f"nullsmtpd check: {error}", _USAGE, STDERR)
    except (OSError, RuntimeError) as error:  # out of file descriptors, threads or memory
        reason = getattr(error, "strerror", None) or error
        return _print(f"nullsmtpd check: cannot run: {reason}; see the limits of this process", _BAD, STDERR)


def _run(arguments: list[str], environment: Mapping[str, str]) -> int:
    from nullsmtpd import __version__
    from nullsmtpd.nullmx import need_extra

    parser = make_parser()
    if {"-h", "--help"} & set(arguments):
        return _print(parser.format_help().rstrip(), _GOOD)
    if "--version" in arguments:
        return _print(f"nullsmtpd {__version__}", _GOOD)
    options = parser.parse_intermixed_args(arguments)
    _reject_unused_flags(options)
    if options.domain:
        need_extra()
    probes = _probe(options, environment)
    if not options.json and not options.domain:
        return _report_each(probes)
    from nullsmtpd.check.report import as_json, domain_lines

    strict = options.strict
    reports = _check_domains(options) if options.domain else iter(())
    if options.json:
        seen, found = list(probes), list(reports)
        is_good = all(one.is_good for one in seen) and all(report.passes(strict=strict) for report in found)
        line = as_json(seen, found, is_good=is_good, strict=strict)
        return _print(line.replace("|", "\\u007c"), _GOOD if is_good else _BAD)
    status = _report_each(probes)
    for report in reports:
        lines = "\n".join(domain_lines(report, strict=strict))
        status = _print(lines, status if report.passes(strict=strict) else _BAD)
    return status


def _probe(options: "Namespace", environment: Mapping[str, str]) -> "Iterable[Probe]":
    """Probe the hosts that are named, or without any those of the environment. Raises `ValueError`."""
    if not options.hosts and not options.domain:
        return check_health(environment, mode=options.mode, early=options.early, timeout=options.timeout)
    hosts = dict.fromkeys(_host(text, options.port) for text in options.hosts)
    mode, timeout = options.mode or "close", options.timeout or TIMEOUT
    return probe_hosts(hosts, partial(probe, mode=mode, early=options.early, timeout=timeout))


def _check_domains(options: "Namespace") -> "Iterator[DomainReport]":
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


def _reject_unused_flags(options: "Namespace") -> None:
    """Raise `ValueError` for a flag that would have no effect."""
    needed = dict.fromkeys(("resolver", "sends", "strict", "allow_private"), "" if options.domain else "--domain")
    needed["port"] = "" if options.domain or options.hosts else "HOST or --domain"
    needed |= dict.fromkeys(("early", "mode"), "HOST" if options.domain and not options.hosts else "")
    for name, other in needed.items():
        if other and getattr(options, name):
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} is for {other} only; give that too, or leave {flag} out")


def _port(text: str) -> int:
    with contextlib.suppress(ValueError):
        if port := parse_address(f":{text}").port:
            return port
    raise ValueError("is not a port; give a number from 1 to 65535")


def _host(text: str, default_port: int | None) -> tuple[str, int]:
    """Parse ``HOST``, ``HOST:PORT``, ``[v6]:PORT`` or an IPv6 address with or without brackets. Raises `ValueError`."""
    from nullsmtpd.cli.arguments import shown

    address = f"[{text}]" if text.count(":") > 1 and not text.startswith("[") else text
    if address.endswith("]") or ":" not in address:
        address = f"{address}:{default_port or _SMTP_PORT}"
    try:
        host, port = parse_address(address)
    except ValueError as error:
        raise ValueError(f"HOST: {shown(text)} {error}") from None
    if host is None or not port:
        raise ValueError(f"HOST: {shown(text)} is nothing to connect to; give HOST, HOST:PORT or [v6]:PORT")
    return host, port


def _print(text: str, status: int, descriptor: int = STDOUT) -> int:
    """Print a line without "|", which begins performance data in the output of a Nagios plugin; return the status."""
    return print_line(descriptor, text.replace("|", "\\x7c"), status)
