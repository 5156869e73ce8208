"""What the operator may say: flags, environment variables, defaults, and what is wrong with a mistake.

Not argparse: it costs 0.9 MB for the life of the process, and the environment, which comes first in a container, would
stand beside it anyway. One table feeds flags, variables and --help.
"""

import re
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from nullsmtpd.listeners import Address, parse_address
from nullsmtpd.replies import (
    DEFAULT_TEXT,
    MAX_REPLY_OCTETS,
    Dialogue,
    mail_dialogue,
    reply_line,
    session_dialogue,
)

__all__ = ["Options", "UsageError", "help_text", "parse_options"]

_PREFIX = "NULLSMTPD_"

# A Kubernetes Service named "nullsmtpd" puts these beside ours, into every pod of its namespace.
_SERVICE_LINK = re.compile(_PREFIX + r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\w+)?)")

MODES = ("close", "session", "mail")

_MAX_SECONDS = 3600.0
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DOMAIN = rf"(?=.{{1,255}}\Z){_LABEL}(\.{_LABEL})*"
_MAX_INT = 2**31 - 1  # listen(2) takes an int
_MAX_SHOWN = 80  # characters of a wrong value that a message repeats


class UsageError(Exception):
    """The command line or the environment is wrong; the message is one line that says how to right it."""


class Options(NamedTuple):
    """The operator's choices, all of them checked."""

    listen: tuple[Address, ...]
    reply: bytes
    dialogue: Dialogue | None  # None: mode close
    linger: float
    max_lingering: int
    max_sessions: int
    timeout: float
    backlog: int


class _Option(NamedTuple):
    metavar: str
    default: str
    help: str


def _seconds(text: str) -> float:
    # No float() alone: it also takes "nan", "inf", "1_0" and digits of other scripts.
    if not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{0,15})?|\.[0-9]{1,15}", text) or not 0 <= float(text) <= _MAX_SECONDS:
        raise ValueError(f"is not a number of seconds from 0 to {_MAX_SECONDS:.0f}")
    return float(text)


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text) or not 1 <= int(text) <= _MAX_INT:
        raise ValueError(f"is not a whole number from 1 to {_MAX_INT}")
    return int(text)


def _positive_seconds(text: str) -> float:
    if not (seconds := _seconds(text)):
        raise ValueError(f"is not a number of seconds above 0 and up to {_MAX_SECONDS:.0f}")
    return seconds


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


_TABLE = {
    "listen": _Option(
        "ADDR",
        ":25",
        "where to listen: HOST:PORT, [v6]:PORT, or :PORT for all addresses of both families; port 0 picks a free one; "
        "for more than one, repeat the flag, or separate them by commas in the variable",
    ),
    "mode": _Option(
        "MODE",
        "close",
        "close: say 521 and close. session: say 521 to every command until QUIT. mail: greet with 220 and say 521 to "
        "MAIL, which Postfix, OpenSMTPD and qmail bounce at once instead of trying again for days",
    ),
    "text": _Option(
        "TEXT",
        DEFAULT_TEXT,
        f"what follows the code 521: one line of printable ASCII, {MAX_REPLY_OCTETS} octets with code and CRLF at most",
    ),
    "hostname": _Option(
        "NAME",
        "",
        "the domain name in the greeting of mode mail and in goodbyes (default: the host's own name)",
    ),
    "linger": _Option(
        "SECONDS",
        "2",
        "how long an answered client that does not close may take to read the line; 0 closes at once",
    ),
    "max-lingering": _Option(
        "N",
        "4096",
        "how many such clients to keep: past that the oldest go first; lowered to what the limit of open files allows",
    ),
    "max-sessions": _Option(
        "N",
        "1000",
        "how many clients may talk at once in the modes session and mail: past that a client gets the answer of close",
    ),
    "timeout": _Option("SECONDS", "300", "how long a client in those modes may stay silent"),
    "backlog": _Option(
        "N",
        "4096",
        "how many connections the kernel may hold for us; it lowers this to net.core.somaxconn",
    ),
}

# Where a value comes from, for the message about it, and the value.
_Given = list[tuple[str, str]]
_T = TypeVar("_T")


def parse_options(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Return the options: a flag wins over its environment variable, and that over the default.

    ``arguments`` are those after the command's name. Raises `UsageError` for an unknown name, a missing value, or a
    value that its option cannot take.
    """
    given: dict[str, _Given] = {name: [("the default", option.default)] for name, option in _TABLE.items()}
    given["hostname"] = []
    given |= _read_variables(environment)
    given |= _read_flags(arguments)
    mode = _last(given["mode"], _mode)
    hostname = _last(given["hostname"], _domain) if given["hostname"] else _own_name()
    return Options(
        listen=tuple(dict.fromkeys(_several(given["listen"], parse_address))),
        reply=_last(given["text"], reply_line),
        dialogue=_last(given["text"], lambda text: _dialogue(mode, text, hostname)),
        linger=_last(given["linger"], _seconds),
        max_lingering=_last(given["max-lingering"], _count),
        max_sessions=_last(given["max-sessions"], _count),
        timeout=_last(given["timeout"], _positive_seconds),
        backlog=_last(given["backlog"], _count),
    )


def _read_flags(arguments: Sequence[str]) -> dict[str, _Given]:
    flags: dict[str, _Given] = {}
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--")
        if name == flag or name not in _TABLE:
            raise UsageError(f"unknown argument {flag!a}; nullsmtpd --help lists the options")
        if not equals:
            try:
                value = next(rest)
            except StopIteration:
                raise UsageError(f"{flag} needs a value: {flag} {_TABLE[name].metavar}") from None
        flags.setdefault(name, []).append((flag, value))
    return flags


def _read_variables(environment: Mapping[str, str]) -> dict[str, _Given]:
    names = {_variable(name): name for name in _TABLE}
    variables: dict[str, _Given] = {}
    for variable, value in environment.items():
        if not variable.startswith(_PREFIX) or _SERVICE_LINK.fullmatch(variable):
            continue
        if variable not in names:
            raise UsageError(f"unknown variable {variable!a} in the environment; nullsmtpd --help lists the options")
        values = value.split(",") if names[variable] == "listen" else [value]
        variables[names[variable]] = [(variable, item) for item in values]
    return variables


def _dialogue(mode: str, text: str, hostname: str) -> Dialogue | None:
    if mode == "close":
        return None
    return (session_dialogue if mode == "session" else mail_dialogue)(text, hostname)


def _several(given: _Given, parse: Callable[[str], _T]) -> list[_T]:
    return [_last([item], parse) for item in given]


def _last(given: _Given, parse: Callable[[str], _T]) -> _T:
    source, text = given[-1]
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"{source}: {_shown(text)} {error}") from None


def _shown(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}…"


def _variable(name: str) -> str:
    return _PREFIX + name.upper().replace("-", "_")


def help_text() -> str:
    """Return what ``--help`` prints."""
    lines = [
        "usage: nullsmtpd [--option VALUE ...]",
        "",
        "Answer every connection with one line that says this host accepts no mail (RFC 7504), and close.",
        "",
    ]
    for name, option in _TABLE.items():
        default = f" (default: {option.default})" if option.default else ""
        lines += [f"  --{name} {option.metavar}", *_indented(option.help + default)]
    lines += [
        "  --version",
        *_indented("print the version and exit"),
        "  --help",
        *_indented("print this and exit"),
        "",
        f"Every option is read from the environment too: --max-lingering from {_variable('max-lingering')}.",
        "SIGTERM and SIGINT end it with status 0, SIGUSR1 logs its counters.",
        "Exit status: 0 asked to end, 1 cannot run, 2 a mistake in the options.",
    ]
    return "\n".join(lines) + "\n"


def _indented(text: str) -> list[str]:
    import textwrap  # for --help alone

    return textwrap.wrap(text, 88, initial_indent=" " * 8, subsequent_indent=" " * 8)
