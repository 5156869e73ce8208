"""Sockets that a service manager passes in, and its notification socket: sd_listen_fds(3), sd_notify(3)."""

import asyncio
import contextlib
import errno
import os
import re
import socket
from collections.abc import MutableMapping

from nullsmtpd.runtime.log import log
from nullsmtpd.runtime.sockets import ListenError
from nullsmtpd.runtime.tcp import reset_options

__all__ = ["Notifier", "inherited_listeners"]

# sd_listen_fds(3): the first descriptor that is passed.
_FIRST = 3


def inherited_listeners(environment: MutableMapping[str, str], *, unix: bool = False) -> list[socket.socket]:
    """Return the listening sockets that were passed to this process, non-blocking; an empty list when none were.

    LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES are removed from ``environment``, so that no child process takes them for
    its own. ``unix``: Unix sockets are valid beside TCP sockets. Raises `ListenError` for any other descriptor.
    """
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()):
        if count:
            reason = "passed to another process: start nullsmtpd without a wrapper that forks"
            log("listen-fds-ignored", listen_pid=pid, pid=os.getpid(), reason=reason)
        return []
    if not re.fullmatch("[0-9]{1,9}", count):
        raise ListenError(errno.EINVAL, f"{count[:20]!a} is not a number of sockets", "LISTEN_FDS")
    return [_adopt(descriptor, unix=unix) for descriptor in range(_FIRST, _FIRST + int(count))]


def _adopt(descriptor: int, *, unix: bool) -> socket.socket:
    families = {socket.AF_INET, socket.AF_INET6, *([socket.AF_UNIX] if unix else [])}
    kind = "TCP or Unix" if unix else "TCP"
    reason: str | None = f"not a listening {kind} socket"
    try:
        listener = socket.socket(fileno=descriptor)
        is_stream = listener.family in families and listener.type == socket.SOCK_STREAM
        if is_stream and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            listener.set_inheritable(False)
            listener.setblocking(False)
            if listener.family != socket.AF_UNIX:
                reset_options(listener)
            return listener
    except OSError as error:
        reason = error.strerror
    message = f"descriptor {descriptor}: {reason}; pass listening {kind} sockets"
    raise ListenError(errno.EINVAL, message, "LISTEN_FDS")


class Notifier:
    """An sd_notify(3) client; it never blocks or raises.

    NOTIFY_SOCKET is removed from ``environment``: a path, or ``@`` and a name in the abstract namespace.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        path = environment.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._socket: socket.socket | None = None
        if path:
            with contextlib.suppress(OSError):  # once, not for every message: there may be no descriptor left then
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
        # sd_watchdog_enabled(3): microseconds, and the process that is meant.
        timeout, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        has_watchdog = re.fullmatch("[0-9]{1,15}", timeout) and pid in {"", str(os.getpid())}
        self._watchdog_interval = int(timeout) / 2_000_000 if has_watchdog else 0.0

    def notify(self, *states: str) -> None:
        """Send ``states`` such as ``READY=1``."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(states).encode(), self._address)

    def start_watchdog(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send WATCHDOG=1 twice per timeout, if the service manager has a watchdog for this process."""
        if self._watchdog_interval:
            self.notify("WATCHDOG=1")
            loop.call_later(self._watchdog_interval, self.start_watchdog, loop)
