"""The command ``nullsmtpd``: its options, environment variables and help."""

import re
import socket
from collections.abc import Mapping, Sequence
from functools import partial

from nullsmtpd.cli.arguments import COMMON_HELP, COMMON_OPTIONS, Option, UsageError, format_help, read_options, shown
from nullsmtpd.cli.command import run_server
from nullsmtpd.cli.values import boolean, matching, positive_int, positive_seconds, seconds
from nullsmtpd.responder.options import Options
from nullsmtpd.responder.replies import DEFAULT_TEXT, MODES, reply_line
from nullsmtpd.runtime.sockets import parse_address

__all__ = ["TABLE", "help_text", "parse_options", "run"]

# RFC 5321 §2.3.5: labels of letters, digits and hyphens, 255 octets in all.
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DOMAIN = rf"(?=.{{1,255}}\Z){_LABEL}(\.{_LABEL})*"


def _text(text: str) -> str:
    reply_line(text)  # raises ValueError
    return text


_HELP = """\
usage: nullsmtpd [-h] [--version] [--listen ADDR] [--mode MODE] [options]
       nullsmtpd check [HOST[:PORT]] ...  does a host refuse mail properly?
       nullsmtpd relay [options]          tell relays which domains take no mail

Answer every connection with one line that says that this host does not accept
mail (RFC 7504), and close it. check and relay have a --help of their own.

{}
"""

TABLE = {
    "listen": Option(
        "ADDR",
        ":25",
        "listen on HOST:PORT, [v6]:PORT or :PORT for all addresses; repeatable",
        parse_address,
        lists=True,
    ),
    "mode": Option(
        "MODE",
        "close",
        "close: send 521 and close the connection. session: reply 521 to every command until QUIT. mail: greet with "
        "220 and reply 521 to MAIL; Postfix, OpenSMTPD and qmail bounce that at once, while they defer a 521 greeting",
        matching("|".join(MODES), "is not a mode; give close, session or mail"),
    ),
    "text": Option("TEXT", DEFAULT_TEXT, "the text after the code 521: one line of printable ASCII", _text),
    "hostname": Option(
        "NAME",
        "",
        "the domain name in the replies of the modes session and mail (default: hostname)",
        matching(_DOMAIN, "is not a domain name; give labels of letters, digits and hyphens, separated by dots"),
    ),
    "linger": Option(
        "SECONDS", "2", "time for an answered client to close; with 0 an early talker may lose the line", seconds
    ),
    "max-lingering": Option("N", "4096", "answered clients kept open; beyond it the oldest is closed", positive_int),
    "max-sessions": Option("N", "1000", "clients with a session; beyond it a client gets mode close", positive_int),
    "timeout": Option("SECONDS", "300", "time that a client with a session may be silent", positive_seconds),
    "backlog": Option("N", "4096", "length of the accept queue, limited by net.core.somaxconn", positive_int),
    "reuse-port": Option("", "no", "let other instances of the same user listen on the same port", boolean),
    "access-log": Option("", "no", "log one line per connection; rate-limited", boolean),
    **COMMON_OPTIONS,
}


def parse_options(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Return the validated options. Precedence: flag, environment variable, default.

    ``arguments``: those after the command's name. Raises `nullsmtpd.cli.arguments.UsageError`.
    """
    values = read_options(TABLE, arguments, environment)
    text, hostname = values.pop("text"), values.pop("hostname")
    dialogue = None
    if values["mode"] != "close":
        from nullsmtpd.responder.dialogues import mail_dialogue, session_dialogue

        make = session_dialogue if values["mode"] == "session" else mail_dialogue
        own_name = socket.gethostname()  # without asking DNS
        try:
            dialogue = make(text, hostname or (own_name if re.fullmatch(_DOMAIN, own_name) else "localhost"))
        except ValueError as error:  # too long with the enhanced code before it
            raise UsageError(f"--text: {shown(text)} {error}") from None
    return Options(reply=reply_line(text), dialogue=dialogue, **values)


#: Returns what ``--help`` prints.
help_text = partial(format_help, _HELP + COMMON_HELP, TABLE)

#: Runs the command with the arguments after its name, and the environment; returns its exit status, see ``--help``.
run = partial(run_server, "nullsmtpd", help_text, parse_options, "nullsmtpd.responder.server")
