"""Unix sockets to listen on: bound where a dead process may have left its own, and taken away in the end."""

import contextlib
import errno
import os
import socket
import stat
from typing import NamedTuple

from nullsmtpd.runtime.sockets import ListenError

__all__ = ["MAX_PATH_OCTETS", "LocalListener", "bind_local"]

#: unix(7): ``sun_path`` has 108 octets with the NUL at its end; other systems have 104.
MAX_PATH_OCTETS = 103

# Whoever reaches the directory may connect: a relay's processes are of many users, and all there is to learn is in DNS.
_UMASK = 0o111


class LocalListener(NamedTuple):
    """A listening socket and what it is in its directory."""

    listener: socket.socket
    path: str
    identity: tuple[int, int]

    def remove(self) -> None:
        """Take it out of its directory, unless what is there by now is somebody else's."""
        with contextlib.suppress(OSError):  # gone already, or the directory is not ours to change any more
            if _identity(self.path) == self.identity:
                os.unlink(self.path)  # noqa: PTH108 - no pathlib here


def bind_local(path: str, backlog: int) -> LocalListener:
    """Return a listening socket at ``path``, non-blocking, mode 0666.

    A socket there that nobody listens on any more is replaced; any other file is left alone. Raises `ListenError`.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(path)
        umask = os.umask(_UMASK)
        try:
            listener.bind(path)
        finally:
            os.umask(umask)
        listener.listen(backlog)
        listener.setblocking(False)
        return LocalListener(listener, path, _identity(path))
    except OSError as error:
        listener.close()
        raise ListenError(error.errno, error.strerror, f"unix:{path}") from None


def _remove_stale(path: str) -> None:
    """Make way for a socket at ``path``. Raises `OSError` for what has to stay."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "a file that is no socket is there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)  # noqa: PTH108
            return
        except BlockingIOError:
            pass  # its queue is full: somebody is there
    raise OSError(errno.EADDRINUSE, "taken: another process answers there")


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino
