"""nullsmtpd: the reply of a host that receives no mail (RFC 7504).

For other programs there are:

- `DrainProtocol`: an asyncio Protocol that sends the line, half-closes, and discards what the client still sends;
- `SessionProtocol`: one that answers every command from the fixed replies of `session_dialogue` or `mail_dialogue`;
- `REPLY`, the default reply as octets, and `reply_line`, which makes one from another text;
- `accepts_mail` and `look_up_mx`: whether a domain has a null MX (RFC 7505), and its MX set (`MXAnswer` of `MX`); they
  raise `DomainError` and `DNSError`, and need the extra ``relay``;
- `check_host`, and `probe` for one address: whether mail is refused there (`Probe`);
- `check_domain`: what a domain publishes about mail, and what a sender of mail to it meets (`DomainReport` of
  `Finding`, `HostReport` and `Verdict`); it needs that extra too.
"""

_MODULES = {
    "check.domain": ("DomainReport", "HostReport", "check_domain"),
    "check.probe": ("Probe", "check_host", "probe"),
    "check.published": ("Finding",),
    "check.verdicts": ("Verdict",),
    "nullmx": ("MX", "DNSError", "DomainError", "MXAnswer", "accepts_mail", "look_up_mx"),
    "responder.dialogues": ("mail_dialogue", "session_dialogue"),
    "responder.drain": ("DrainProtocol",),
    "responder.replies": ("REPLY", "reply_line"),
    "responder.session": ("SessionProtocol",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__"]
__all__ += list(_MODULE_OF)
__version__ = "0.2.0"


def __getattr__(name: str) -> object:
    """Import the public names on first use (PEP 562): the command must handle signals before asyncio is loaded."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"nullsmtpd.{_MODULE_OF[name]}"), name)
