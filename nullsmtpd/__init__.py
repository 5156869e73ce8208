"""nullsmtpd: the answer of a host that receives no mail (RFC 7504).

The command is ``nullsmtpd`` (or ``python -m nullsmtpd``). For programs of your own there are:

- `DrainProtocol`: an asyncio Protocol that says the line, half-closes and discards what the client still sends;
- `REPLY`: the default reply as octets, CRLF included;
- `reply_line`: a checked reply from a text of your own.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nullsmtpd.drain import DrainProtocol as DrainProtocol
    from nullsmtpd.replies import REPLY as REPLY
    from nullsmtpd.replies import reply_line as reply_line

__all__ = ["REPLY", "DrainProtocol", "__version__", "reply_line"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import the public names on first use (PEP 562): the command must own its signals before asyncio loads."""
    if name == "DrainProtocol":
        from nullsmtpd.drain import DrainProtocol

        return DrainProtocol
    if name in {"REPLY", "reply_line"}:
        from nullsmtpd import replies

        return getattr(replies, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
