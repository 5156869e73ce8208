"""nullsmtpd: the answer of a host that receives no mail (RFC 7504).

The command is ``nullsmtpd`` (or ``python -m nullsmtpd``). For programs of your own there are:

- `DrainProtocol`: an asyncio Protocol that says the line, half-closes and discards what the client still sends;
- `SessionProtocol`: one that answers every command from a table of fixed replies, which `session_dialogue` and
  `mail_dialogue` make;
- `REPLY`: the default reply as octets, CRLF included;
- `reply_line`: a checked reply from a text of your own.
"""

TYPE_CHECKING = (
    False  # as type checkers take it; `typing` itself would be the slowest import of all before our handlers
)
if TYPE_CHECKING:
    from nullsmtpd.drain import DrainProtocol as DrainProtocol
    from nullsmtpd.replies import REPLY as REPLY
    from nullsmtpd.replies import mail_dialogue as mail_dialogue
    from nullsmtpd.replies import reply_line as reply_line
    from nullsmtpd.replies import session_dialogue as session_dialogue
    from nullsmtpd.session import SessionProtocol as SessionProtocol

__all__ = [
    "REPLY",
    "DrainProtocol",
    "SessionProtocol",
    "__version__",
    "mail_dialogue",
    "reply_line",
    "session_dialogue",
]
__version__ = "0.1.0"

_HOMES = {
    "DrainProtocol": "nullsmtpd.drain",
    "REPLY": "nullsmtpd.replies",
    "SessionProtocol": "nullsmtpd.session",
    "mail_dialogue": "nullsmtpd.replies",
    "reply_line": "nullsmtpd.replies",
    "session_dialogue": "nullsmtpd.replies",
}


def __getattr__(name: str) -> object:
    """Import the public names on first use (PEP 562): the command must own its signals before asyncio loads."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
