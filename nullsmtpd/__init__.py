"""nullsmtpd: the answer of a host that receives no mail (RFC 7504).

The command is ``nullsmtpd`` (or ``python -m nullsmtpd``). For programs of your own there are:

- `DrainProtocol`: an asyncio Protocol that says the line, half-closes and discards what the client still sends;
- `SessionProtocol`: one that answers every command from a table of fixed replies, which `session_dialogue` and
  `mail_dialogue` make;
- `REPLY`: the default reply as octets, CRLF included;
- `reply_line`: a checked reply from a text of your own;
- `accepts_mail` and `look_up_mx`: whether a domain has a null MX (RFC 7505), and what it has otherwise (`MXAnswer`
  of `MX`); they raise `DomainError` and `DNSError`, and take the distribution's extra ``relay``;
- `check_host`, and `probe` for one address: whether mail is refused there (`Probe`);
- `check_domain`: what a sender of mail to a domain experiences (`DomainReport` of `HostReport` and `Verdict`); it
  takes that extra too.
"""

TYPE_CHECKING = (
    False  # as type checkers take it; `typing` itself would be the slowest import of all before our handlers
)
if TYPE_CHECKING:
    from nullsmtpd.check.domain import DomainReport as DomainReport
    from nullsmtpd.check.domain import HostReport as HostReport
    from nullsmtpd.check.domain import check_domain as check_domain
    from nullsmtpd.check.hosts import check_host as check_host
    from nullsmtpd.check.outcome import Probe as Probe
    from nullsmtpd.check.probe import probe as probe
    from nullsmtpd.check.verdicts import Verdict as Verdict
    from nullsmtpd.nullmx import MX as MX
    from nullsmtpd.nullmx import DNSError as DNSError
    from nullsmtpd.nullmx import DomainError as DomainError
    from nullsmtpd.nullmx import MXAnswer as MXAnswer
    from nullsmtpd.nullmx import accepts_mail as accepts_mail
    from nullsmtpd.nullmx import look_up_mx as look_up_mx
    from nullsmtpd.responder.drain import DrainProtocol as DrainProtocol
    from nullsmtpd.responder.replies import REPLY as REPLY
    from nullsmtpd.responder.replies import mail_dialogue as mail_dialogue
    from nullsmtpd.responder.replies import reply_line as reply_line
    from nullsmtpd.responder.replies import session_dialogue as session_dialogue
    from nullsmtpd.responder.session import SessionProtocol as SessionProtocol

_NAMES = {
    "nullsmtpd.check.domain": ("DomainReport", "HostReport", "check_domain"),
    "nullsmtpd.check.hosts": ("check_host",),
    "nullsmtpd.check.outcome": ("Probe",),
    "nullsmtpd.check.probe": ("probe",),
    "nullsmtpd.check.verdicts": ("Verdict",),
    "nullsmtpd.responder.drain": ("DrainProtocol",),
    "nullsmtpd.nullmx": ("MX", "DNSError", "DomainError", "MXAnswer", "accepts_mail", "look_up_mx"),
    "nullsmtpd.responder.replies": ("REPLY", "mail_dialogue", "reply_line", "session_dialogue"),
    "nullsmtpd.responder.session": ("SessionProtocol",),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}

__all__ = ["__version__"]
__all__ += list(_HOMES)
__version__ = "0.2.0"


def __getattr__(name: str) -> object:
    """Import the public names on first use (PEP 562): the command must own its signals before asyncio loads."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
