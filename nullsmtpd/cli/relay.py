"""What the operator of the relay's side may say, and what is wrong with a mistake."""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nullsmtpd.cli.arguments import (
    Option,
    UsageError,
    option_lines,
    parse_all,
    parse_last,
    positive_int,
    positive_seconds,
    read_options,
    user_or_group,
    variable,
)
from nullsmtpd.nullmx import TIMEOUT, resolver_address
from nullsmtpd.relay.local import MAX_PATH_OCTETS
from nullsmtpd.runtime.sockets import Address, parse_address

__all__ = ["MAX_TIMEOUT", "Options", "UsageError", "help_text", "parse_options"]

#: Postfix gives up on a socketmap after 100 seconds (dict_sockmap.c), and then defers the mail.
MAX_TIMEOUT = 60.0

_UNIX = "unix:"


class Options(NamedTuple):
    """The operator's choices, all of them checked. ``listen``: addresses, and paths of Unix sockets."""

    listen: tuple[Address | str, ...]
    resolver: tuple[str, int] | None  # None: those of /etc/resolv.conf
    timeout: float
    cache: int
    max_sessions: int
    user: str | None
    group: str | None


def _place(text: str) -> Address | str:
    """Parse ``unix:PATH`` to the path, or an address."""
    if not text.startswith(_UNIX):
        return parse_address(text)
    path = text.removeprefix(_UNIX)
    if not path.startswith("/") or not path.isprintable():
        raise ValueError("has no plain absolute path; give unix:/PATH, such as unix:/run/nullsmtpd/relay")
    if len(os.fsencode(path)) > MAX_PATH_OCTETS:
        raise ValueError(f"has a path of more than {MAX_PATH_OCTETS} octets, which no Unix socket can have")
    return path


def _timeout(text: str) -> float:
    if (value := positive_seconds(text)) > MAX_TIMEOUT:
        raise ValueError(f"is more than {MAX_TIMEOUT:.0f}: the relay itself would give up first, and defer the mail")
    return value


_TABLE = {
    "listen": Option(
        "ADDR",
        "127.0.0.1:5560",
        "where to listen: unix:/PATH, HOST:PORT or [v6]:PORT, or :PORT for all addresses, which are then for everyone "
        "who reaches them; for more than one, repeat the flag, or separate them by commas in the variable",
        lists=True,
    ),
    "resolver": Option(
        "ADDR[:PORT]",
        "",
        "the recursive name server to ask (default: those of /etc/resolv.conf, as it is at each question)",
    ),
    "timeout": Option(
        "SECONDS",
        f"{TIMEOUT:g}",
        f"how long DNS may take; NOTFOUND then, so that mail goes on. {MAX_TIMEOUT:.0f} at most; of the recipes in "
        "deploy/relay only Sendmail's (30) and Postfix's table (100) wait for more than 10",
    ),
    "cache": Option("N", "10000", "how many domains to remember, each for the TTL that DNS gives"),
    "max-sessions": Option(
        "N",
        "1000",
        "how many clients may be connected: past that the one which was silent for longest makes room; lowered to what "
        "the limit of open files allows",
    ),
    "user": Option("NAME", "", "whom to become, by name or number, once all sockets are bound"),
    "group": Option("NAME", "", "the group to become, by name or number (default: the user's own)"),
}


def parse_options(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Return the options: a flag wins over its environment variable, and that over the default.

    ``arguments`` are those after ``relay``. Raises `UsageError` for an unknown name, a missing value, or a value that
    its option cannot take.
    """
    given = read_options(_TABLE, arguments, environment)
    return Options(
        listen=tuple(dict.fromkeys(parse_all(given["listen"], _place))),
        resolver=parse_last(given["resolver"], resolver_address) if given["resolver"] else None,
        timeout=parse_last(given["timeout"], _timeout),
        cache=parse_last(given["cache"], positive_int),
        max_sessions=parse_last(given["max-sessions"], positive_int),
        user=parse_last(given["user"], user_or_group) if given["user"] else None,
        group=parse_last(given["group"], user_or_group) if given["group"] else None,
    )


def help_text() -> str:
    """Return what ``--help`` prints."""
    lines = [
        "usage: nullsmtpd relay [--option VALUE ...]",
        "",
        "Tell mail relays, over the socketmap protocol, which domains accept no mail (null MX, RFC 7505), so that they",
        "can say 556 at RCPT (RFC 7504). Needs the extra: pip install 'nullsmtpd-521[relay]'",
        "",
        *option_lines(_TABLE),
        "",
        f"Every option is read from the environment too: --max-sessions from {variable('max-sessions')}.",
        "Listening sockets that a service manager passes in (LISTEN_FDS) replace --listen.",
        "SIGTERM and SIGINT end it with status 0, SIGUSR1 logs its counters.",
        "Exit status: 0 asked to end, 1 cannot run, 2 a mistake in the options, or the extra is missing.",
    ]
    return "\n".join(lines) + "\n"
