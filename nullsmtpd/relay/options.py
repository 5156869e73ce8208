"""What can be configured?"""

from typing import NamedTuple

from nullsmtpd.runtime.sockets import Address

__all__ = ["Options"]


class Options(NamedTuple):
    """The operator's choices, validated. Times are in seconds."""

    listen: tuple[Address | str, ...]  # addresses, and paths of Unix sockets
    exceptions: frozenset[str]  # domains in A-labels and lower case; with a dot in front, all below it
    resolver: tuple[str, int] | None  # None: those of /etc/resolv.conf
    timeout: float
    cache: int
    max_sessions: int
    user: str | None
    group: str | None
    metrics: Address | None
