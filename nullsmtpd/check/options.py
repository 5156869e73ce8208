"""What an operator may ask ``nullsmtpd check``, and what is wrong with a mistake."""

import socket
from collections.abc import Sequence
from typing import NamedTuple

from nullsmtpd.arguments import Option, UsageError, last, option_lines, positive_seconds, read_options, switch
from nullsmtpd.check.probe import MODES, TIMEOUT
from nullsmtpd.listeners import parse_address

__all__ = ["Options", "UsageError", "help_text", "parse_options"]

_SMTP_PORT = 25


class Options(NamedTuple):
    """The operator's choices, all of them checked. No ``hosts``: those of NULLSMTPD_LISTEN."""

    hosts: tuple[tuple[str, int], ...]
    mode: str | None  # None: that of NULLSMTPD_MODE
    early: bool
    timeout: float


_TABLE = {
    "timeout": Option("SECONDS", f"{TIMEOUT:g}", "how long connecting, the reply and the FIN may take at one address"),
    "early": Option(
        "", "no", "speak before the greeting, EHLO and MAIL in one go; the whole reply is due all the same"
    ),
    "mode": Option(
        "MODE",
        "",
        "how the host should refuse: close, session or mail, as nullsmtpd --help has them (default: close; without "
        "HOST, that of NULLSMTPD_MODE)",
    ),
}


def parse_options(arguments: Sequence[str]) -> Options:
    """Return the options. Raises `UsageError` for an unknown name, a missing value, or one that cannot be.

    No environment: what the responder reads there is not meant for a check of some host.
    """
    hosts, flags = _part(arguments)
    given = read_options(_TABLE, flags, {})
    return Options(
        hosts=tuple(dict.fromkeys(last([("HOST", host)], _host) for host in hosts)),
        mode=last(given["mode"], _mode) if given["mode"] else None,
        early=last(given["early"], switch),
        timeout=last(given["timeout"], positive_seconds),
    )


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


def _host(text: str) -> tuple[str, int]:
    """Parse ``HOST``, ``HOST:PORT``, an IPv6 address with or without brackets, or ``[v6]:PORT``."""
    if _is_ipv6(text):
        return text, _SMTP_PORT
    if ":" not in text or text.endswith("]"):
        text = f"{text}:{_SMTP_PORT}"
    host, port = parse_address(text)
    if host is None or not port:
        raise ValueError("names no host and port to connect to; give HOST, HOST:PORT or [v6]:PORT")
    return host, port


def _is_ipv6(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, text.partition("%")[0])
    except (OSError, ValueError):
        return False
    return True


def _mode(text: str) -> str:
    if text not in MODES:
        raise ValueError(f"is not a mode; give {', '.join(MODES)}")
    return text


def help_text() -> str:
    """Return what ``--help`` prints."""
    lines = [
        "usage: nullsmtpd check [--option VALUE ...] [HOST[:PORT] ...]",
        "",
        "Connect to each address of HOST and see whether it refuses mail properly: one whole 521 reply, then FIN.",
        "Without HOST: the addresses in NULLSMTPD_LISTEN, as a container's health check.",
        "",
        *option_lines(_TABLE),
        "",
        "Exit status: 0 all good, 1 not, 2 a mistake in the options.",
    ]
    return "\n".join(lines) + "\n"
