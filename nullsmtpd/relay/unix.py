"""How is a Unix socket opened where a crashed process may have left its own, and removed in the end?"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator

from nullsmtpd.runtime.sockets import ListenError

__all__ = ["MAX_PATH_OCTETS", "unix_listener"]

#: unix(7): ``sun_path`` has 108 octets including a final NUL; other systems have 104.
MAX_PATH_OCTETS = 103

# Everybody may connect: mail servers run as several users, and there is nothing to learn here that is not in DNS.
_UMASK = 0o111

# Seconds to wait for another process that opens or removes its socket in the same directory.
_LOCK_TIMEOUT = 2.0
_LOCK_INTERVAL = 0.01


@contextlib.contextmanager
def unix_listener(path: str, backlog: int) -> Iterator[socket.socket]:
    """Provide a non-blocking listening socket at ``path``, with mode 0666; the file is removed in the end.

    A socket there on which no process listens is replaced; any other file stays. Of several processes that do this at
    the same time one succeeds. Raises `ListenError`.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        with _lock_directory(path):
            _remove_stale(path)
            umask = os.umask(_UMASK)
            try:
                listener.bind(path)
            finally:
                os.umask(umask)
            listener.listen(backlog)
            listener.setblocking(False)
            status = os.lstat(path)
    except OSError as error:
        listener.close()
        raise ListenError(error.errno, error.strerror, f"unix:{path}") from None
    try:
        yield listener
    finally:
        # It may be gone already, or not removable any more after privileges were dropped.
        with contextlib.suppress(OSError), _lock_directory(path):
            if os.path.samestat(os.lstat(path), status):  # not replaced by another process
                os.unlink(path)  # noqa: PTH108 - no pathlib here


@contextlib.contextmanager
def _lock_directory(path: str) -> Iterator[None]:
    """Hold a lock on the directory of ``path``, flock(2), which the kernel releases when a process crashes.

    Without it a process could take the socket of another one for stale between its bind(2) and listen(2), or remove
    it between its own check and its unlink(2). A lock file would have to stay there for ever.
    """
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)  # noqa: PTH120
    deadline = time.monotonic() + _LOCK_TIMEOUT
    try:
        while True:
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OSError(errno.EADDRINUSE, "its directory is locked by another process") from None
                time.sleep(_LOCK_INTERVAL)
        yield
    finally:
        os.close(directory)


def _remove_stale(path: str) -> None:
    """Remove a socket on which no process listens. Raises `OSError` for any other file."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "a file that is no socket is there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # its accept queue may be full
        if probe.connect_ex(path) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "taken: another process answers there")
    os.unlink(path)  # noqa: PTH108
