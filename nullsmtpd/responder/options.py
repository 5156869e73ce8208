"""What can be configured?"""

from typing import TYPE_CHECKING, NamedTuple

from nullsmtpd.runtime.sockets import Address

if TYPE_CHECKING:
    from nullsmtpd.responder.dialogues import Dialogue

__all__ = ["Options"]


class Options(NamedTuple):
    """The operator's choices, validated. Times are in seconds."""

    listen: tuple[Address, ...]
    mode: str
    reply: bytes
    dialogue: "Dialogue | None"  # None: mode close
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
