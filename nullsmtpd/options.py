"""What the operator may say: flags, environment variables, defaults, and what is wrong with a mistake.

Not argparse: it costs 0.9 MB for the life of the process, and the environment, which comes first in a container, would
stand beside it anyway. One table feeds flags, variables and --help.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from nullsmtpd.listeners import Address, parse_address
from nullsmtpd.replies import DEFAULT_TEXT, MAX_REPLY_OCTETS, reply_line

__all__ = ["Options", "UsageError", "help_text", "parse_options"]

_PREFIX = "NULLSMTPD_"

# A Kubernetes Service named "nullsmtpd" puts these beside ours, into every pod of its namespace.
_SERVICE_LINK = re.compile(_PREFIX + r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\w+)?)")

_MAX_SECONDS = 3600.0
_MAX_INT = 2**31 - 1  # listen(2) takes an int
_MAX_SHOWN = 80  # characters of a wrong value that a message repeats


class UsageError(Exception):
    """The command line or the environment is wrong; the message is one line that says how to right it."""


class Options(NamedTuple):
    """The operator's choices, all of them checked."""

    listen: tuple[Address, ...]
    reply: bytes
    linger: float
    max_lingering: int
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


_TABLE = {
    "listen": _Option(
        "ADDR",
        ":25",
        "where to listen: HOST:PORT, [v6]:PORT, or :PORT for all addresses of both families; port 0 picks a free one; "
        "for more than one, repeat the flag, or separate them by commas in the variable",
    ),
    "text": _Option(
        "TEXT",
        DEFAULT_TEXT,
        f"what follows the code 521: one line of printable ASCII, {MAX_REPLY_OCTETS} octets with code and CRLF at most",
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
    given |= _read_variables(environment)
    given |= _read_flags(arguments)
    return Options(
        listen=tuple(dict.fromkeys(_several(given["listen"], parse_address))),
        reply=_last(given["text"], reply_line),
        linger=_last(given["linger"], _seconds),
        max_lingering=_last(given["max-lingering"], _count),
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
        lines += [f"  --{name} {option.metavar}", *_indented(f"{option.help} (default: {option.default})")]
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
