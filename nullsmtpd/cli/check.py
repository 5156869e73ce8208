"""What an operator may ask ``nullsmtpd check``, and what is wrong with a mistake."""

import socket
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nullsmtpd.check.dialogue import known_mode
from nullsmtpd.check.health import BUDGET
from nullsmtpd.check.probe import TIMEOUT
from nullsmtpd.cli.arguments import (
    Given,
    Option,
    UsageError,
    boolean,
    option_lines,
    parse_last,
    positive_seconds,
    read_options,
    shown,
)
from nullsmtpd.runtime.sockets import parse_address

__all__ = ["Options", "UsageError", "help_text", "parse_options"]

_SMTP_PORT = 25
_MAX_PORT = 65535


class Options(NamedTuple):
    """The operator's choices, all of them checked. No ``hosts``: those of NULLSMTPD_LISTEN."""

    hosts: tuple[tuple[str, int], ...]
    mode: str | None  # None: that of NULLSMTPD_MODE
    early: bool
    timeout: float | None  # None: the default
    json: bool
    domain: str | None  # A-labels
    port: int
    resolver: tuple[str, int] | None


_TABLE = {
    "timeout": Option(
        "SECONDS",
        "",
        "how long connecting and the dialogue may take at one address, or DNS for an answer "
        f"(default: {TIMEOUT:g}; without HOST and --domain {BUDGET:g} for all addresses, an equal part for each)",
    ),
    "early": Option(
        "", "no", "speak to HOST before the greeting, EHLO and MAIL in one go; the whole reply is due all the same"
    ),
    "mode": Option(
        "MODE",
        "",
        "how HOST should refuse: close, session or mail, as nullsmtpd --help has them (default: close; without HOST "
        "that of NULLSMTPD_MODE)",
    ),
    "json": Option("", "no", "print one line of JSON"),
    "domain": Option(
        "NAME",
        "",
        "look at NAME as a sender of mail does: its MX set, whether that is a null MX (RFC 7505), what each address "
        "answers, and what the sender experiences; needs the distribution's extra [relay]",
    ),
    "port": Option("PORT", str(_SMTP_PORT), "where to connect to, for --domain and for each HOST without a port"),
    "resolver": Option("ADDR[:PORT]", "", "the name server for --domain (default: those of /etc/resolv.conf)"),
}


def parse_options(arguments: Sequence[str]) -> Options:
    """Return the options. Raises `UsageError` for an unknown name, a missing value, or one that cannot be.

    No environment: what the responder reads there is not meant for a check of some host.
    """
    hosts, flags = _part(arguments)
    given = read_options(_TABLE, flags, {})
    _refuse_idle(given, has_host=bool(hosts))
    port = parse_last(given["port"], _port)
    return Options(
        hosts=tuple(dict.fromkeys(_host(host, port) for host in hosts)),
        mode=parse_last(given["mode"], known_mode) if given["mode"] else None,
        early=parse_last(given["early"], boolean),
        timeout=parse_last(given["timeout"], positive_seconds) if given["timeout"] else None,
        json=parse_last(given["json"], boolean),
        domain=parse_last(given["domain"], _domain) if given["domain"] else None,
        port=port,
        resolver=parse_last(given["resolver"], _resolver) if given["resolver"] else None,
    )


def _refuse_idle(given: Mapping[str, Given], *, has_host: bool) -> None:
    """Raise `UsageError` for a flag that would change nothing."""
    has_domain = bool(given["domain"])
    idle = {
        "resolver": "" if has_domain else "--domain",
        "port": "" if has_domain or has_host else "HOST or --domain",
        "early": "HOST" if has_domain and not has_host else "",
        "mode": "HOST" if has_domain and not has_host else "",
    }
    for name, needed in idle.items():
        if needed and any(source == f"--{name}" for source, _ in given[name]):
            raise UsageError(f"--{name} is for {needed} alone; give that too, or leave --{name} out")


def _domain(text: str) -> str:
    from nullsmtpd.nullmx import domain_of

    if "@" in text:
        raise ValueError("is an address; give the domain after the @")
    return domain_of(text)


def _resolver(text: str) -> tuple[str, int]:
    from nullsmtpd.nullmx import resolver_address

    return resolver_address(text)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(_MAX_PORT)) or not 1 <= int(text) <= _MAX_PORT:
        raise ValueError(f"is not a port; give a number from 1 to {_MAX_PORT}")
    return int(text)


def _part(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part the hosts from the flags, each with its value."""
    hosts: list[str] = []
    flags: list[str] = []
    is_value = False
    for argument in arguments:
        (flags if is_value or argument.startswith("-") else hosts).append(argument)
        option = None if is_value else _TABLE.get(argument.removeprefix("--"))
        is_value = option is not None and argument.startswith("--") and bool(option.metavar)
    return hosts, flags


def _host(text: str, port: int) -> tuple[str, int]:
    """Read ``HOST``, ``HOST:PORT``, ``[v6]:PORT``, or an IPv6 address with or without brackets. Raises `UsageError`."""
    if _is_ipv6(text):
        text = f"[{text}]"
    address = parse_last([("HOST", text if _has_port(text) else f"{text}:{port}")], parse_address)
    if address.host is None or not address.port:
        raise UsageError(f"HOST: {shown(text)} is nothing to connect to; give HOST, HOST:PORT or [v6]:PORT")
    return address.host, address.port


def _has_port(text: str) -> bool:
    return ":" in text and not text.endswith("]")


def _is_ipv6(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, text.partition("%")[0])
    except (OSError, ValueError):
        return False
    return True


def help_text() -> str:
    """Return what ``--help`` prints."""
    lines = [
        "usage: nullsmtpd check [--option VALUE ...] [HOST[:PORT] ...]",
        "",
        "Connect to each address of HOST and see whether it refuses mail properly: one whole 521 reply, then FIN.",
        "Without HOST and --domain: the addresses in NULLSMTPD_LISTEN, as a container's health check.",
        "",
        *option_lines(_TABLE),
        "",
        "Exit status: 0 all good, 1 not, 2 a mistake in the options.",
    ]
    return "\n".join(lines)
