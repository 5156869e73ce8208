"""The command ``nullsmtpd relay``: its options, environment variables and help."""

import os
from collections.abc import Mapping, Sequence
from functools import partial

from nullsmtpd.cli.arguments import COMMON_HELP, COMMON_OPTIONS, Option, UsageError, format_help, read_options
from nullsmtpd.cli.command import run_server
from nullsmtpd.cli.values import positive_int, positive_seconds
from nullsmtpd.nullmx import TIMEOUT, MissingExtraError, domain_of, load_extra, resolver_address
from nullsmtpd.relay.options import Options
from nullsmtpd.relay.unix import MAX_PATH_OCTETS
from nullsmtpd.runtime.sockets import Address, parse_address

__all__ = ["MAX_TIMEOUT", "TABLE", "help_text", "parse_options", "run"]

#: Seconds. Postfix gives up on a socketmap after 100 (dict_sockmap.c), and then defers the mail.
MAX_TIMEOUT = 60.0


def _address(text: str) -> Address | str:
    """Parse ``unix:PATH`` to the path, or an address."""
    path = text.removeprefix("unix:")
    if path == text:
        return parse_address(text)
    if not path.startswith("/") or not path.isprintable() or len(os.fsencode(path)) > MAX_PATH_OCTETS:
        raise ValueError(f"has no plain absolute path of at most {MAX_PATH_OCTETS} octets, as in unix:/run/relay")
    return path


def _exception(text: str) -> str:
    if "@" in text:
        raise ValueError("is an address; give its domain")
    dot = "." if text.startswith(".") else ""
    return dot + domain_of(text.removeprefix("."))


_HELP = """\
usage: nullsmtpd relay [-h] [--version] [--listen ADDR] [options]

Tell mail servers, over the socketmap protocol, which domains accept no mail
(null MX, RFC 7505), so that they can reply 556 to RCPT (RFC 7504), and 550 to
MAIL from such a domain. Needs the extra: pip install 'nullsmtpd-521[relay]'

{}
"""

TABLE = {
    "listen": Option(
        "ADDR", "127.0.0.1:5560", "listen on unix:/PATH, HOST:PORT, [v6]:PORT, :PORT; repeatable", _address, lists=True
    ),
    "except": Option(
        "DOMAIN", "", "never refuse mail to or from this domain, or below .DOMAIN; repeatable", _exception, lists=True
    ),
    "resolver": Option(
        "ADDR[:PORT]", "", "the recursive name server to query (default: those of /etc/resolv.conf)", resolver_address
    ),
    "timeout": Option(
        "SECONDS",
        f"{TIMEOUT:g}",
        f"limit for a DNS query; NOTFOUND then, so that mail is not refused. At most {MAX_TIMEOUT:.0f}; of the recipes "
        "in deploy/relay only those for Sendmail (30) and Postfix's tables (100) wait for more than 10",
        partial(positive_seconds, maximum=MAX_TIMEOUT),
    ),
    "cache": Option("N", "10000", "number of domains to keep, each for the TTL that DNS gives", positive_int),
    "max-sessions": Option("N", "1000", "number of clients at once; beyond it an idle one is evicted", positive_int),
    **COMMON_OPTIONS,
}


def parse_options(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Return the validated options, and load the extra, before privileges are dropped. Raises `UsageError`."""
    try:
        values = read_options(TABLE, arguments, environment)
        load_extra()
    except MissingExtraError as error:
        raise UsageError(str(error)) from None
    return Options(exceptions=frozenset(values.pop("except")), **values)


#: Returns what ``--help`` prints.
help_text = partial(format_help, _HELP + COMMON_HELP, TABLE)

#: Runs the command with the arguments after its name, and the environment; returns its exit status, see ``--help``.
run = partial(run_server, "nullsmtpd relay", help_text, parse_options, "nullsmtpd.relay.server")
