"""What a service manager hands us and wants to hear: sockets, and how we are (sd_listen_fds(3), sd_notify(3))."""

import asyncio
import contextlib
import os
import re
import socket
import sys
from collections.abc import MutableMapping

from nullsmtpd.runtime.sockets import ListenError
from nullsmtpd.runtime.tcp import cork_replies

__all__ = ["Notifier", "inherited_listeners"]

# sd_listen_fds(3): the first descriptor that is passed.
_FIRST = 3


def inherited_listeners(
    environment: MutableMapping[str, str], *, cork: bool, local: bool = False
) -> list[socket.socket]:
    """Return the listening sockets that were passed to this process, non-blocking; none when none were.

    LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES are taken out of ``environment``, so that no child believes to have been
    meant. ``cork`` as for `nullsmtpd.runtime.sockets.bind`. ``local``: Unix sockets will do as well as TCP ones. Raises
    `ListenError` for what is no such listening socket.
    """
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()):
        return []
    if not re.fullmatch("[0-9]{1,9}", count):
        raise ListenError(f"LISTEN_FDS: {count!a} is not a number of sockets")
    return [_adopt(descriptor, cork=cork, local=local) for descriptor in range(_FIRST, _FIRST + int(count))]


def _adopt(descriptor: int, *, cork: bool, local: bool) -> socket.socket:
    kind, stream = ("TCP or Unix", "a port or a path") if local else ("TCP", "a port")
    wanted = f"pass listening {kind} sockets, ListenStream= with {stream}"
    try:
        listener = socket.socket(fileno=descriptor)
        is_tcp = listener.family in {socket.AF_INET, socket.AF_INET6}
        is_wanted = (is_tcp or (local and listener.family == socket.AF_UNIX)) and listener.type == socket.SOCK_STREAM
        if not (is_wanted and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)):
            raise ListenError(f"LISTEN_FDS: descriptor {descriptor} is not a listening {kind} socket; {wanted}")
        listener.set_inheritable(False)
        listener.setblocking(False)
        if is_tcp:
            cork_replies(listener, on=cork)  # the last process on this socket may have had another mode
    except OSError as error:
        raise ListenError(f"LISTEN_FDS: descriptor {descriptor}: {error.strerror}; {wanted}") from None
    return listener


class Notifier:
    """Tells the service manager how we are, where it listens for that; what it does not hear is no fault of ours.

    NOTIFY_SOCKET is taken out of ``environment``: a path, or ``@`` and a name in the abstract namespace.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Look for the manager's socket, and for whether it wants to be told regularly."""
        path = environment.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._messenger: socket.socket | None = None
        if path and sys.platform == "linux":
            with contextlib.suppress(OSError):  # once, not for every message: there may be no descriptor left then
                self._messenger = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.watchdog_seconds = _watchdog_seconds(environment)

    def tell(self, *states: str) -> None:
        """Send ``states`` such as ``READY=1``; never wait, never raise."""
        if self._messenger is not None:
            with contextlib.suppress(OSError):
                self._messenger.sendto("\n".join(states).encode(), self._address)

    def keep_alive(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say that the loop turns, as often as the manager wants to hear it."""
        if seconds := self.watchdog_seconds:
            self.tell("WATCHDOG=1")
            loop.call_later(seconds, self.keep_alive, loop)


def _watchdog_seconds(environment: MutableMapping[str, str]) -> float | None:
    """Return how often to say WATCHDOG=1: twice in the time after which we count as dead (sd_watchdog_enabled(3))."""
    microseconds, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
    if not re.fullmatch("0*[1-9][0-9]{0,14}", microseconds) or pid not in {
        "",
        str(os.getpid()),
    }:
        return None
    return int(microseconds) / 2_000_000
