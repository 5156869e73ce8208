"""Flags, environment variables, defaults and ``--help``, all read from one table of options.

Not argparse: it costs 0.9 MB for the life of the process, and does not read the environment.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from nullsmtpd.cli.values import metrics_address, user_or_group

__all__ = ["COMMON_HELP", "COMMON_OPTIONS", "Option", "UsageError", "format_help", "read_options", "shown"]

_PREFIX = "NULLSMTPD_"
_MAX_SHOWN = 80  # characters of a wrong value that a message repeats
_HELP_INDENT = 24  # columns

# Where a value comes from, for the message about it, and the value; the last one counts.
_Given = list[tuple[str, str]]


class UsageError(Exception):
    """The command line or the environment is wrong; the message is one line with what would be valid."""


class Option(NamedTuple):
    """One row of the table of a command's options.

    ``metavar`` stands for the value in --help; an empty one is for a boolean, whose flag takes no value. ``default`` is
    ``""`` where the option may be absent. ``parse`` converts a value, and raises `ValueError` with what is wrong, to be
    read after the value. ``lists``: the flag may be repeated, and its variable separates by commas; if ``metavar`` ends
    in "...", several values may follow the flag. The row named "" takes the other arguments without a flag.
    """

    metavar: str
    default: str
    help: str
    parse: Callable[[str], object] = str
    lists: bool = False


Table = Mapping[str, Option]


def read_options(table: Table, arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the converted value of each option, by its name with underscores. Precedence: flag, variable, default.

    `None` stands for an option without any; a tuple without duplicates for one that ``lists``. Raises `UsageError` for
    an unknown name, a missing value and an invalid one.
    """
    given = _read_variables(table, environment) | _read_flags(table, arguments)
    return {name.replace("-", "_"): _converted(option, given.get(name, [])) for name, option in table.items()}


def _converted(option: Option, given: _Given) -> object:
    if not given and option.default:
        given = [("the default", option.default)]
    values = []
    for source, text in given if option.lists else given[-1:]:
        try:
            values.append(option.parse(text))
        except ValueError as error:
            raise UsageError(f"{source}: {shown(text)} {error}") from None
    if option.lists:
        return tuple(dict.fromkeys(values))
    return values[0] if values else None


def _read_flags(table: Table, arguments: Sequence[str]) -> dict[str, _Given]:
    flags: dict[str, _Given] = {}
    taker = ""  # the option whose value an argument without a flag is
    rest = iter(arguments)
    for argument in rest:
        if taker in table and not argument.startswith("-"):
            flags.setdefault(taker, []).append((f"--{taker}" if taker else table[""].metavar, argument))
            continue
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--")
        if name == flag or name not in table:
            raise UsageError(f"unknown argument {shown(flag)}; --help lists the options")
        metavar = table[name].metavar
        if equals and not metavar:
            raise UsageError(f"{flag} takes no value; leave out {shown(value)}")
        given = value if equals else next(rest, None) if metavar else "yes"
        if given is None:
            raise UsageError(f"{flag} needs a value: {flag} {metavar}")
        flags.setdefault(name, []).append((flag, given))
        taker = name if metavar.endswith("...") else ""
    return flags


def _read_variables(table: Table, environment: Mapping[str, str]) -> dict[str, _Given]:
    options = {_PREFIX + name.upper().replace("-", "_"): (name, option) for name, option in table.items()}
    # In Kubernetes a pod has variables of each Service in its namespace, such as "nullsmtpd" or "nullsmtpd-metrics".
    services = [key.removesuffix("SERVICE_HOST") for key in environment if key.endswith("_SERVICE_HOST")]
    ignored = tuple(name + words for name in services for words in ("SERVICE_HOST_", "SERVICE_PORT_", "PORT_"))
    variables: dict[str, _Given] = {}
    for key, value in environment.items():
        if key in options:
            name, option = options[key]
            variables[name] = [(key, item) for item in (value.split(",") if option.lists else [value])]
        elif key.startswith(_PREFIX) and not f"{key}_".startswith(ignored):
            raise UsageError(f"unknown variable {shown(key)} in the environment; --help lists the options")
    return variables


def shown(text: str) -> str:
    """Return an invalid value as messages repeat it: escaped, and shortened."""
    escaped = ascii(text)
    return escaped if len(escaped) <= _MAX_SHOWN else f"{escaped[:_MAX_SHOWN]}..."


#: Options that every server has.
COMMON_OPTIONS = {
    "user": Option("NAME", "", "drop privileges to this user, by name or number, after binding", user_or_group),
    "group": Option("NAME", "", "drop privileges to this group (default: the user's primary group)", user_or_group),
    "metrics": Option("HOST:PORT", "", "serve metrics to Prometheus at http://HOST:PORT/metrics", metrics_address),
}


#: The end of ``--help`` of every server.
COMMON_HELP = """
Each option can also be set in the environment: --max-sessions as
NULLSMTPD_MAX_SESSIONS, and what is repeatable separated by commas.
Precedence: flag, environment variable, default.
Sockets that a service manager passes in (LISTEN_FDS) replace --listen.
SIGTERM and SIGINT shut it down gracefully, SIGUSR1 logs its counters.
Exit status: 0 shut down by a signal, 1 cannot run, 2 invalid options."""


def format_help(template: str, table: Table) -> str:
    """Return ``template`` with the lines that list the options, in 80 columns, in place of its ``{}``."""
    import textwrap  # for --help alone

    rows = [("-h, --help", "print this help and exit"), ("--version", "print the version and exit")]
    for name, option in table.items():
        default = f" (default: {option.default})" if option.default and option.metavar else ""
        rows.append((f"--{name} {option.metavar}".rstrip(), option.help + default))
    lines = ["options:"]
    for flag, text in rows:
        first = f"  {flag} ".ljust(_HELP_INDENT)
        if len(first) > _HELP_INDENT:
            lines.append(first.rstrip())
            first = " " * _HELP_INDENT
        lines += textwrap.wrap(text, 80, initial_indent=first, subsequent_indent=" " * _HELP_INDENT)
    return template.format("\n".join(lines))
