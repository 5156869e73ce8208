"""What the operator of the responder may say, and what is wrong with a mistake."""

import re
import socket
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nullsmtpd.cli.arguments import (
    Option,
    UsageError,
    account,
    count,
    last,
    option_lines,
    positive_seconds,
    read_options,
    seconds,
    several,
    switch,
    variable,
)
from nullsmtpd.responder.replies import (
    DEFAULT_TEXT,
    MAX_REPLY_OCTETS,
    Dialogue,
    mail_dialogue,
    reply_line,
    session_dialogue,
)
from nullsmtpd.runtime.sockets import Address, parse_address

__all__ = ["MAX_WORKERS", "Options", "UsageError", "help_text", "parse_options"]

MODES = ("close", "session", "mail")

#: More processes than any host has use for: each takes a port's whole queue of its own.
MAX_WORKERS = 256

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DOMAIN = rf"(?=.{{1,255}}\Z){_LABEL}(\.{_LABEL})*"


class Options(NamedTuple):
    """The operator's choices, all of them checked."""

    listen: tuple[Address, ...]
    mode: str
    reply: bytes
    dialogue: Dialogue | None  # None: mode close
    linger: float
    max_lingering: int
    max_sessions: int
    timeout: float
    backlog: int
    workers: int | None  # None: as many as there are CPUs for us
    user: str | None
    group: str | None
    access_log: bool
    metrics: Address | None


def _mode(text: str) -> str:
    if text not in MODES:
        raise ValueError(f"is not a mode; give {', '.join(MODES[:-1])} or {MODES[-1]}")
    return text


def _domain(text: str) -> str:
    """Check a domain name, RFC 5321 §2.3.5: labels of letters, digits and hyphens, 255 octets at most."""
    if not re.fullmatch(_DOMAIN, text):
        raise ValueError("is not a domain name; give labels of letters, digits and hyphens, parted by dots")
    return text


def _own_name() -> str:
    """Return the host's name, without asking DNS; a name that no domain name can be is left out."""
    name = socket.gethostname()
    return name if re.fullmatch(_DOMAIN, name) else "localhost"


def _workers(text: str) -> int | None:
    if text == "auto":
        return None
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= MAX_WORKERS:
        raise ValueError(f"is not a number of processes; give 1 to {MAX_WORKERS}, or auto")
    return int(text)


def _metrics(text: str) -> Address:
    address = parse_address(text)
    if address.host is None:
        raise ValueError("has no host; give HOST:PORT or [v6]:PORT, such as 127.0.0.1:9521")
    return address


_TABLE = {
    "listen": Option(
        "ADDR",
        ":25",
        "where to listen: HOST:PORT, [v6]:PORT, or :PORT for all addresses of both families; port 0 picks a free one; "
        "for more than one, repeat the flag, or separate them by commas in the variable",
        lists=True,
    ),
    "mode": Option(
        "MODE",
        "close",
        "close: say 521 and close. session: say 521 to every command until QUIT. mail: greet with 220 and say 521 to "
        "MAIL, which Postfix, OpenSMTPD and qmail bounce at once instead of trying again for days",
    ),
    "text": Option(
        "TEXT",
        DEFAULT_TEXT,
        f"what follows the code 521: one line of printable ASCII, {MAX_REPLY_OCTETS} octets with code and CRLF at most",
    ),
    "hostname": Option(
        "NAME",
        "",
        "the domain name in the greeting of mode mail and in goodbyes (default: the host's own name)",
    ),
    "linger": Option(
        "SECONDS",
        "2",
        "how long an answered client that does not close may take to read the line; 0 closes at once",
    ),
    "max-lingering": Option(
        "N",
        "4096",
        "how many such clients to keep: past that the oldest go first; lowered to what the limit of open files allows",
    ),
    "max-sessions": Option(
        "N",
        "1000",
        "how many clients may talk at once in the modes session and mail: past that a client gets the answer of close",
    ),
    "timeout": Option("SECONDS", "300", "how long a client in those modes may stay silent"),
    "backlog": Option(
        "N",
        "4096",
        "how many connections the kernel may hold for us; it lowers this to net.core.somaxconn",
    ),
    "workers": Option(
        "N",
        "1",
        "how many processes answer; auto: one for each CPU that this process may use. --max-lingering, --max-sessions "
        "and --backlog hold for each of them",
    ),
    "user": Option("NAME", "", "whom to become, by name or number, once all sockets are bound"),
    "group": Option("NAME", "", "the group to become, by name or number (default: the user's own)"),
    "access-log": Option(
        "",
        "no",
        "log a line for every connection: its addresses, the mode, and whether the client spoke first",
    ),
    "metrics": Option(
        "HOST:PORT",
        "",
        "where to serve /metrics to Prometheus; needs the distribution's extra [metrics]",
    ),
}


def parse_options(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Return the options: a flag wins over its environment variable, and that over the default.

    ``arguments`` are those after the command's name. Raises `UsageError` for an unknown name, a missing value, or a
    value that its option cannot take.
    """
    given = read_options(_TABLE, arguments, environment)
    mode = last(given["mode"], _mode)
    hostname = last(given["hostname"], _domain) if given["hostname"] else _own_name()
    return Options(
        listen=tuple(dict.fromkeys(several(given["listen"], parse_address))),
        mode=mode,
        reply=last(given["text"], reply_line),
        dialogue=last(given["text"], lambda text: _dialogue(mode, text, hostname)),
        linger=last(given["linger"], seconds),
        max_lingering=last(given["max-lingering"], count),
        max_sessions=last(given["max-sessions"], count),
        timeout=last(given["timeout"], positive_seconds),
        backlog=last(given["backlog"], count),
        workers=last(given["workers"], _workers),
        user=last(given["user"], account) if given["user"] else None,
        group=last(given["group"], account) if given["group"] else None,
        access_log=last(given["access-log"], switch),
        metrics=last(given["metrics"], _metrics) if given["metrics"] else None,
    )


def _dialogue(mode: str, text: str, hostname: str) -> Dialogue | None:
    if mode == "close":
        return None
    return (session_dialogue if mode == "session" else mail_dialogue)(text, hostname)


def help_text() -> str:
    """Return what ``--help`` prints."""
    lines = [
        "usage: nullsmtpd [--option VALUE ...]",
        "       nullsmtpd check [HOST[:PORT] ...] (nullsmtpd check --help)",
        "       nullsmtpd relay [--option VALUE ...] (nullsmtpd relay --help)",
        "",
        "Answer every connection with one line that says this host accepts no mail (RFC 7504), and close.",
        "check tells whether a host does so; relay tells mail relays which domains accept no mail.",
        "",
        *option_lines(_TABLE),
        "",
        f"Every option is read from the environment too: --max-lingering from {variable('max-lingering')}.",
        "SIGTERM and SIGINT end it with status 0, SIGUSR1 logs its counters.",
        "Exit status: 0 asked to end, 1 cannot run, 2 a mistake in the options.",
    ]
    return "\n".join(lines) + "\n"
