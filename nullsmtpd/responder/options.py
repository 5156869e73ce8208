"""What can be configured?"""

from typing import NamedTuple

from nullsmtpd.responder.replies import Dialogue
from nullsmtpd.runtime.sockets import Address

__all__ = ["Options"]


class Options(NamedTuple):
    """The operator's choices, validated. Times are in seconds."""

    listen: tuple[Address, ...]
    mode: str
    reply: bytes
    dialogue: Dialogue | None  # None: mode close
    linger: float
    max_lingering: int
    max_sessions: int
    timeout: float
    backlog: int
    reuse_port: bool
    user: str | None
    group: str | None
    access_log: bool
    metrics: Address | None
