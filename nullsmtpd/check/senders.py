"""What mail servers do with a host, or a domain, that refuses mail.

The only home of these facts: `check` makes its words from them, and the tests that run real senders hold them to what
they measure. qmail alone is not among those tests; its row is from one run of qmail-remote and its source.
"""

from enum import StrEnum
from typing import NamedTuple

__all__ = ["SENDERS", "Fate", "Sender"]


class Fate(StrEnum):
    """What becomes of a message."""

    BOUNCED = "bounced"  #: returned to its author at once, with the text of the reply
    DEFERRED = "deferred"  #: kept in the queue and tried again for days


class Sender(NamedTuple):
    """A mail server with a queue, by its default settings and ``setting``. What it does with each kind of refusal."""

    name: str
    days: int  #: after which a deferred message is returned to its author
    greeting: Fate  #: 521 as the greeting (modes close and session)
    greeting_again: Fate  #: the same, for a further message before the host's retry time, 15 minutes in Exim
    #: 220, then 521 to EHLO and to HELO. A server that closes instead of answering HELO is tried again by all of them.
    ehlo: Fate
    mail: Fate  #: 220, 250 to EHLO, then 521 to MAIL (mode mail)
    #: The same, if the sender is set to require TLS, which mode mail does not offer; `None`: the sender has no TLS.
    mail_requiring_tls: Fate | None
    null_mx: Fate  #: a null MX (RFC 7505)
    null_mx_since: str = ""  #: the first version that heeds a null MX; an older one defers. Empty: all in use do
    shows_text: bool = True  #: the author of a message deferred for its 521 greeting reads its text after those days
    setting: str = ""  #: what is set otherwise than by default


_B, _D = Fate.BOUNCED, Fate.DEFERRED

SENDERS = (
    # days; greeting, the next one; EHLO; MAIL, if TLS is required; null MX
    Sender("Postfix", 5, _D, _D, _B, _B, _D, _B),
    Sender("Postfix", 5, _B, _B, _B, _B, _D, _B, setting="smtp_skip_5xx_greeting=no"),
    Sender("Exim", 4, _B, _D, _B, _B, _D, _B),
    Sender("Sendmail", 5, _B, _B, _B, _B, _D, _B),
    Sender("OpenSMTPD", 4, _D, _D, _D, _B, _D, _B, null_mx_since="7.5", shows_text=False),
    Sender("dma", 5, _B, _B, _B, _B, _D, _D),
    Sender("qmail", 7, _D, _D, _D, _B, None, _B),
)
