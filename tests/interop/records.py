"""What becomes of a message, and what its author reads about it."""

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from network import EHLO_REFUSED, MODES, NULL_MX, SENDING, domain_for
from receivers import TEXT

__all__ = ["GREETED_BY_521", "MESSAGES", "SENDER", "Fate", "Mail", "Message", "Record", "Stage", "read_mail", "select"]

#: The modes in which a client is greeted by 521.
GREETED_BY_521 = ("close", "session")

#: The author of every message, who gets the bounces.
SENDER = f"alice@{SENDING}"


class Message(NamedTuple):
    """A message to be sent. ``purpose``: first, next, utf8, spared, ehlo or null. ``mode``: of nullsmtpd, if any."""

    purpose: str
    mode: str
    recipient: str

    @property
    def domain(self) -> str:
        return self.recipient.partition("@")[2]

    @property
    def subject(self) -> str:
        return f"Are you coming, {self.purpose} {self.mode}?"

    def text(self) -> str:
        """Return header and body. Both need SMTPUTF8 (RFC 6531) if the recipient does, who is in the header."""
        return f"From: {SENDER}\nTo: {self.recipient}\nSubject: {self.subject}\n\nOn Friday.\n"


#: The messages that every sender gets to deliver: the first for each host, and after them the next for some.
MESSAGES = (
    [
        *(Message("first", mode, f"bob@{domain_for('plain', mode)}") for mode in MODES),
        *(Message("utf8", mode, f"jörg@{domain_for('utf8', mode)}") for mode in MODES),
        *(Message("spared", mode, f"bob@{domain_for('spared', mode)}") for mode in MODES),
        Message("ehlo", "", f"bob@{EHLO_REFUSED}"),
        Message("null", "", f"bob@{NULL_MX}"),
    ],
    [Message("next", mode, f"eve@{domain_for('plain', mode)}") for mode in MODES],
)


class Fate(StrEnum):
    """What becomes of a message in the end."""

    BOUNCED = "bounced"
    DELIVERED = "delivered"
    FAILED = "failed"  #: a program without a queue ended with an error
    NOT_TAKEN = "not taken"  #: the sender did not accept it from its author


class Stage(StrEnum):
    """When its author reads about it."""

    AT_ONCE = "at once"
    NEXT_RETRY = "at the next retry"
    LAST = "when its time in the queue has ended"


class Mail(NamedTuple):
    """A message that the author got about one of theirs (RFC 3464). ``action``: failed or delayed."""

    subject: str
    action: str
    status: str
    octets: bytes

    @property
    def is_last(self) -> bool:
        """Tell whether it is the last about this message. OpenSMTPD 6.8 calls a message delayed that it has removed."""
        return self.action == "failed" or self.status.endswith(".4.7")  # RFC 3463 §3.5: delivery time expired


def read_mail(messages: Iterable[bytes]) -> list[Mail]:
    """Return those that are about one of `MESSAGES`: each has that message's header, whole or in part."""
    found = []
    for octets in messages:
        text = octets.decode("utf-8", "replace")
        subject = re.search(r"^Subject: (Are you coming, .*)$", text, re.MULTILINE)
        action, status = (re.search(rf"^{field}: (\S+)$", text, re.MULTILINE) for field in ("Action", "Status"))
        if subject:
            found.append(Mail(subject[1], action[1] if action else "failed", status[1] if status else "", octets))
    return found


class Record(NamedTuple):
    """What became of one message.

    ``version``: the sender's, first two numbers. ``days``: how long it was in the queue, if until `Stage.LAST`;
    ``warned``: after how many hours the author was told that it was delayed, 0 for never. ``status``: the enhanced code
    in the bounce. ``told``: the bounce, or what the program printed. ``connections``: to the host in question.
    """

    sender: str
    setting: str
    suite: str
    version: str
    message: Message
    fate: Fate
    stage: Stage
    days: int = 0
    warned: int = 0
    status: str = ""
    told: bytes = b""
    connections: int = 0

    @property
    def has_text(self) -> bool:
        """Tell whether the author can read the text of the refusal, which may be wrapped anywhere."""
        return TEXT in " ".join(self.told.decode("utf-8", "replace").split())

    @property
    def has_code(self) -> bool:
        """Tell whether the author can read the code of the refusal."""
        return re.search(rb"\b521\b", self.told) is not None


def select(records: Iterable[Record], purposes: str, modes: Iterable[str] = ("",)) -> list[Record]:
    """Return the records of these purposes, separated by spaces, in one of these modes."""
    wanted = purposes.split()
    return [record for record in records if record.message.purpose in wanted and record.message.mode in modes]
