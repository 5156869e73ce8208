"""How a command reads flags, environment variables and defaults: one table an option, one line for a mistake.

Not argparse: it costs 0.9 MB for the life of the process, and the environment, which comes first in a container, would
stand beside it anyway. One table feeds flags, variables and --help.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

__all__ = [
    "Given",
    "Option",
    "UsageError",
    "account",
    "count",
    "last",
    "option_lines",
    "positive_seconds",
    "read_options",
    "seconds",
    "several",
    "shown",
    "switch",
    "variable",
]

_PREFIX = "NULLSMTPD_"

# A Kubernetes Service "nullsmtpd", or "nullsmtpd-metrics", puts these beside ours, into every pod of its namespace.
_SERVICE_LINK = re.compile(r"(NULLSMTPD(?:_\w+?)??)_(?:SERVICE_(?:HOST|PORT(?:_\w+)?)|PORT(?:_\w+)?)")

_MAX_SECONDS = 3600.0
_MAX_INT = 2**31 - 1  # listen(2) takes an int
_MAX_SHOWN = 80  # characters of a wrong value that a message repeats

_YES, _NO = ("1", "yes", "true", "on"), ("0", "no", "false", "off")

# Where a value comes from, for the message about it, and the value; the last one counts.
Given = list[tuple[str, str]]
_T = TypeVar("_T")


class UsageError(Exception):
    """The command line or the environment is wrong; the message is one line that says how to right it."""


class Option(NamedTuple):
    """One line of the table of a command's options.

    ``metavar`` stands for the value in --help; without one the flag is a switch, which takes none, and its variable a
    yes or no. ``default`` is ``""`` where the option may be absent. ``lists``: its variable holds values parted by
    commas, and its flag may be repeated.
    """

    metavar: str
    default: str
    help: str
    lists: bool = False


Table = Mapping[str, Option]


def read_options(table: Table, arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, Given]:
    """Return what was given for each option: a flag wins over its environment variable, and that over the default.

    Nothing given and no default is an empty list. Raises `UsageError` for an unknown name and a missing value; what a
    value means is for `last` and `several`.
    """
    given: dict[str, Given] = {
        name: [("the default", option.default)] if option.default else [] for name, option in table.items()
    }
    given |= _read_variables(table, environment)
    given |= _read_flags(table, arguments)
    return given


def _read_flags(table: Table, arguments: Sequence[str]) -> dict[str, Given]:
    flags: dict[str, Given] = {}
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--")
        if name == flag or name not in table:
            raise UsageError(f"unknown argument {flag!a}; --help lists the options")
        if not table[name].metavar:
            if equals:
                raise UsageError(f"{flag} takes no value; leave {value!a} out")
            value = "yes"
        elif not equals:
            try:
                value = next(rest)
            except StopIteration:
                raise UsageError(f"{flag} needs a value: {flag} {table[name].metavar}") from None
        flags.setdefault(name, []).append((flag, value))
    return flags


def _read_variables(table: Table, environment: Mapping[str, str]) -> dict[str, Given]:
    names = {variable(name): name for name in table}
    variables: dict[str, Given] = {}
    for key, value in environment.items():
        if not key.startswith(_PREFIX) or _is_service_link(key, environment):
            continue
        if key not in names:
            raise UsageError(f"unknown variable {key!a} in the environment; --help lists the options")
        values = value.split(",") if table[names[key]].lists else [value]
        variables[names[key]] = [(key, item) for item in values]
    return variables


def _is_service_link(key: str, environment: Mapping[str, str]) -> bool:
    link = _SERVICE_LINK.fullmatch(key)
    return link is not None and f"{link[1]}_SERVICE_HOST" in environment


def several(given: Given, parse: Callable[[str], _T]) -> list[_T]:
    """Return every value, parsed. Raises `UsageError` where ``parse`` raises `ValueError`."""
    return [last([item], parse) for item in given]


def last(given: Given, parse: Callable[[str], _T]) -> _T:
    """Return the value that counts, parsed. Raises `UsageError` where ``parse`` raises `ValueError`.

    The message of the `ValueError` goes on after the value: "is not a number of seconds".
    """
    source, text = given[-1]
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"{source}: {shown(text)} {error}") from None


def seconds(text: str) -> float:
    """Parse a number of seconds from 0 to an hour. Raises `ValueError`."""
    # No float() alone: it also takes "nan", "inf", "1_0" and digits of other scripts.
    if not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{0,15})?|\.[0-9]{1,15}", text) or not 0 <= float(text) <= _MAX_SECONDS:
        raise ValueError(f"is not a number of seconds from 0 to {_MAX_SECONDS:.0f}")
    return float(text)


def positive_seconds(text: str) -> float:
    """Parse a number of seconds above 0 and up to an hour. Raises `ValueError`."""
    if not (value := seconds(text)):
        raise ValueError(f"is not a number of seconds above 0 and up to {_MAX_SECONDS:.0f}")
    return value


def count(text: str) -> int:
    """Parse a whole number from 1 to what a C int holds. Raises `ValueError`."""
    if not re.fullmatch(r"[0-9]{1,10}", text) or not 1 <= int(text) <= _MAX_INT:
        raise ValueError(f"is not a whole number from 1 to {_MAX_INT}")
    return int(text)


def account(text: str) -> str:
    """Check what can be a user or a group, by name or by number; whether it exists is seen when it is needed.

    Raises `ValueError`.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?", text):
        raise ValueError("is neither a name nor a number; give one as in /etc/passwd or /etc/group")
    return text


def switch(text: str) -> bool:
    """Parse a yes or no. Raises `ValueError`."""
    if text.lower() not in _YES + _NO:
        raise ValueError("is neither yes nor no; give 1 or 0")
    return text.lower() in _YES


def shown(text: str) -> str:
    """Return a wrong value the way a message repeats it: escaped, and not at any length."""
    escaped = ascii(text)
    return escaped if len(escaped) <= _MAX_SHOWN else f"{escaped[:_MAX_SHOWN]}..."


def variable(name: str) -> str:
    """Return the name of an option's environment variable."""
    return _PREFIX + name.upper().replace("-", "_")


def option_lines(table: Table) -> list[str]:
    """Return the part of ``--help`` that lists the options, --version and --help among them."""
    lines: list[str] = []
    for name, option in table.items():
        default = f" (default: {option.default})" if option.default and option.metavar else ""
        lines += [f"  --{name} {option.metavar}".rstrip(), *_indented(option.help + default)]
    return [
        *lines,
        "  --version",
        *_indented("print the version and exit"),
        "  --help",
        *_indented("print this and exit"),
    ]


def _indented(text: str) -> list[str]:
    import textwrap  # for --help alone

    return textwrap.wrap(text, 88, initial_indent=" " * 8, subsequent_indent=" " * 8)
