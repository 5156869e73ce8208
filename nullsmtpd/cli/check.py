"""``nullsmtpd check``: its options, a container's health check, the output and the exit status.

The health check runs every few seconds: it imports no event loop, and nothing else that takes long.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from nullsmtpd import __version__
from nullsmtpd.check.dialogue import known_mode
from nullsmtpd.check.probe import NO_FAMILY, TIMEOUT, Probe, probe, run_all, tasks_for
from nullsmtpd.cli.arguments import Option, UsageError, format_help, read_options
from nullsmtpd.cli.command import STDERR, STDOUT, print_line
from nullsmtpd.cli.values import boolean, positive_seconds
from nullsmtpd.runtime.sockets import MAX_PORT, parse_address, parse_target

if TYPE_CHECKING:
    from nullsmtpd.check.domain import DomainReport

__all__ = ["BUDGET", "TABLE", "check_health", "run"]

#: Seconds for all addresses of a health check together, an equal part for each. A container engine kills a check that
#: exceeds its timeout, 5 s in our image, and its output is lost; the rest is for starting Python on a busy host.
BUDGET = 4.0

_GOOD, _BAD, _USAGE = 0, 1, 2
_SMTP_PORT = 25

# Where to connect to when the responder listens on all addresses of a family.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound here

_HELP = """\
usage: nullsmtpd check [options] [HOST[:PORT] ...]
       nullsmtpd check [options] [HOST[:PORT] ...] --domain NAME ...

Connect to each address of HOST, and check that it refuses mail properly: one
complete 521 reply, then FIN. Without HOST and --domain: the addresses in
NULLSMTPD_LISTEN, as a container's health check.

With --domain: check what NAME publishes about mail (null MX, SPF, DMARC, and
records that contradict a refusal), connect to each address that its mail may
go to, and report what the sender of a message experiences.

{}

exit status:
  0  all good: mail is refused at once, and nothing published contradicts that
  1  not good, or the check cannot run
  2  invalid options or environment"""


def _port(text: str) -> int:
    with contextlib.suppress(ValueError):
        if port := parse_address(f":{text}").port:
            return port
    raise ValueError(f"is not a port; give a number from 1 to {MAX_PORT}")


def _hosts_of(entry: str) -> tuple[tuple[str, int], ...]:
    host, port = parse_address(entry)
    if not port:
        raise ValueError("has port 0, for which the kernel chooses one; give check HOST:PORT")
    return tuple((name, port) for name in (_LOOPBACK.values() if host is None else [_LOOPBACK.get(host, host)]))


# The modules of a domain check would make a health check a fifth slower.
def _domain(text: str) -> str:
    from nullsmtpd.nullmx import MissingExtraError, domain_of, load_extra

    try:
        load_extra()
        return domain_of(text)
    except MissingExtraError as error:
        raise UsageError(str(error)) from None


def _resolver(text: str) -> tuple[str, int]:
    from nullsmtpd.nullmx import resolver_address

    return resolver_address(text)


_TIMEOUT_HELP = f"for one address, and for one DNS query (default: {TIMEOUT:g}; as a health check {BUDGET:g} in all)"

TABLE = {
    "timeout": Option("SECONDS", "", _TIMEOUT_HELP, positive_seconds),
    "early": Option("", "no", "send EHLO and MAIL before the greeting; the same reply is due", boolean),
    "mode": Option("MODE", "", "how HOST refuses: close (the default), session or mail", known_mode),
    "json": Option("", "no", "print one line of JSON", boolean),
    "domain": Option("NAME...", "", "check these domains; needs the extra [relay]", _domain, lists=True),
    "sends": Option("", "no", "the domains send mail, even if no SPF record says so", boolean),
    "strict": Option("", "no", "advice about a domain makes it bad, too", boolean),
    "allow-private": Option("", "no", "treat addresses that are not on the public Internet like all others", boolean),
    "port": Option("PORT", "", f"for --domain and each HOST without a port (default: {_SMTP_PORT})", _port),
    "resolver": Option("ADDR[:PORT]", "", "the name server for --domain (default: /etc/resolv.conf)", _resolver),
}

#: What a health check takes from the environment, by `read_options`.
_HEALTH = {
    "listen": Option("ADDR", ":25", "", _hosts_of, lists=True),
    "mode": Option("MODE", "close", "", known_mode),
    "text": Option("TEXT", "", ""),
}


def run(arguments: list[str], environment: Mapping[str, str]) -> int:
    """Check, report on stdout, and return the exit status, see --help."""
    if {"-h", "--help"} & set(arguments):
        return _print(format_help(_HELP, TABLE), _GOOD)
    if "--version" in arguments:
        return _print(f"nullsmtpd {__version__}", _GOOD)
    try:
        options = _read_options(arguments)
        return _report(_results(options, environment), as_json=options["json"])
    except UsageError as error:
        return _print(f"nullsmtpd check: {error}", _USAGE, STDERR)
    except ImportError as error:  # the installation is damaged
        return _print(f"nullsmtpd check: cannot run: {error}", _BAD, STDERR)
    except (OSError, RuntimeError, MemoryError) as error:  # out of file descriptors, threads or memory
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return _print(f"nullsmtpd check: cannot run: {reason}; see the limits of this process", _BAD, STDERR)


def _report(results: "Iterable[Probe | DomainReport]", *, as_json: bool) -> int:
    """Print each result as soon as it is known: when a check that hangs is killed, those before it remain."""
    status = _GOOD
    if not as_json:
        for result in results:
            status = _print(str(result), status if result.is_good else _BAD)
        return status
    import json

    all_results = list(results)
    hosts = [result.as_json() for result in all_results if isinstance(result, Probe)]
    domains = [result.as_json() for result in all_results if not isinstance(result, Probe)]
    is_good = all(result.is_good for result in all_results)
    found = {"good": is_good, "hosts": hosts} | ({"domains": domains} if domains else {})
    return _print(json.dumps(found).replace("|", "\\u007c"), _GOOD if is_good else _BAD)


def _read_options(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the options, and each HOST as text in "". Raises `UsageError`, also for an option without any effect."""
    options = read_options(TABLE | {"": Option("HOST", "", "", lists=True)}, arguments, {})
    hosts, domains = options[""], options["domain"]
    for names, needed, is_given in (
        (("resolver", "sends", "strict", "allow_private"), "--domain", domains),
        (("port",), "HOST or --domain", hosts or domains),
        (("early", "mode"), "HOST", hosts or not domains),
    ):
        for name in names:
            if options[name] and not is_given:
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag} is for {needed} only; give that too, or leave {flag} out")
    return options


def _results(options: Mapping[str, Any], environment: Mapping[str, str]) -> "Iterator[Probe | DomainReport]":
    """Probe the hosts that are named, check the domains, or without any probe the hosts of the environment."""
    mode, early, timeout, port = (options[name] for name in ("mode", "early", "timeout", "port"))
    if not options[""] and not options["domain"]:
        yield from check_health(environment, mode=mode, early=early, timeout=timeout)
        return
    timeout, port = timeout or TIMEOUT, port or _SMTP_PORT
    row = Option("HOST", "", "", partial(_host, default_port=port), lists=True)
    hosts = read_options({"": row}, options[""], {})[""]
    yield from run_all(tasks_for(hosts, partial(probe, mode=mode or "close", early=early, timeout=timeout)))
    if not options["domain"]:
        return
    from nullsmtpd.runtime.event_loop import import_without_openssl

    import_without_openssl("asyncio")
    import asyncio

    from nullsmtpd.check.domain import check_domain

    for descriptor in os.pipe() + os.pipe():  # an event loop takes three, and prints a traceback if there are fewer
        os.close(descriptor)
    how = {name: options[name] for name in ("resolver", "sends", "strict", "allow_private")}
    for domain in options["domain"]:
        yield asyncio.run(check_domain(domain, port=port, timeout=timeout, **how))


def _host(text: str, default_port: int) -> tuple[str, int]:
    """Parse ``HOST``, ``HOST:PORT``, ``[v6]:PORT`` or an IPv6 address with or without brackets. Raises `ValueError`."""
    host, port = parse_target(text, default_port)
    if host is None or not port:
        raise ValueError("is nothing to connect to; give HOST, HOST:PORT or [v6]:PORT")
    return host, port


def check_health(
    environment: Mapping[str, str], *, mode: str | None = None, early: bool = False, timeout: float | None = None
) -> Iterator[Probe]:
    """Return an iterator that probes every address in NULLSMTPD_LISTEN in turn.

    Loopback stands for all addresses. NULLSMTPD_MODE, unless ``mode`` is given, and NULLSMTPD_TEXT state what is due;
    other variables are ignored. A responder at its --max-sessions is healthy: restarting it would not help. A family
    that this host lacks is no fault as long as an entry has another, as for the responder. ``timeout``: seconds for
    each address; `None` for its part of `BUDGET`. Raises `UsageError`, before any connection, with one line that names
    the variable, when that is invalid or names nothing to connect to.
    """
    names = ("NULLSMTPD_LISTEN", "NULLSMTPD_MODE", "NULLSMTPD_TEXT")
    due = read_options(_HEALTH, (), {name: environment[name] for name in names if name in environment})
    timeout = timeout or BUDGET / sum(map(len, due["listen"]))
    mode, text = mode or due["mode"], due["text"]
    prober = partial(probe, mode=mode, early=early, text=text, may_be_full=True, timeout=timeout)
    return itertools.chain.from_iterable(_probe_entry(hosts, prober) for hosts in due["listen"])


def _probe_entry(hosts: Iterable[tuple[str, int]], prober: Callable[..., Probe]) -> list[Probe]:
    probes = [task() for task in tasks_for(hosts, prober)]
    return [seen for seen in probes if seen.ending != NO_FAMILY] or probes


def _print(text: str, status: int, descriptor: int = STDOUT) -> int:
    """Print a line without "|", which begins performance data in the output of a Nagios plugin; return the status."""
    return print_line(descriptor, text.replace("|", "\\x7c"), status)
