"""What a service manager does for a command: it passes listening sockets, sd_listen_fds(3), and is notified."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from support import PATIENCE, Daemon, running

__all__ = ["command_with", "daemon_on", "hand_over", "outcome_with", "service_manager"]

# Does what systemd does between fork and exec: the sockets are at 3 and up, LISTEN_PID is the process that executes the
# command.
_HAND_OVER = """
import fcntl, os, sys
count, *rest = sys.argv[1:]
descriptors, command = [int(d) for d in rest[:int(count)]], rest[int(count):]
copies = [fcntl.fcntl(d, fcntl.F_DUPFD, 100) for d in descriptors]
for number, copy in enumerate(copies, 3):
    os.dup2(copy, number)
    os.close(copy)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count, "LISTEN_FDNAMES": ":".join(["smtp"] * int(count))}
os.execvp(command[0], command)
"""


def hand_over(sockets: Sequence[socket.socket], *command: str) -> list[str]:
    """Return a command that passes the sockets to ``command``; it inherits them by their numbers here."""
    descriptors = [str(one.fileno()) for one in sockets]
    return [sys.executable, "-c", _HAND_OVER, str(len(sockets)), *descriptors, *command]


def command_with(*sockets: socket.socket) -> list[str]:
    """Return a command that passes the sockets to nullsmtpd."""
    return hand_over(sockets, sys.executable, "-m", "nullsmtpd")


def outcome_with(inherited: socket.socket, command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Return what became of a command that inherits a socket and ends by itself."""
    descriptors = [inherited.fileno()]
    return subprocess.run(command, capture_output=True, text=True, check=False, pass_fds=descriptors, timeout=PATIENCE)


@contextlib.contextmanager
def daemon_on(tmp_path: Path, *sockets: socket.socket, arguments: Sequence[str] = ()) -> Iterator[Daemon]:
    """Run nullsmtpd with the sockets passed in until the end of the block."""
    log_path = tmp_path / f"{time.monotonic_ns()}.log"
    command, descriptors = [*command_with(*sockets), *arguments], [one.fileno() for one in sockets]
    with running(command, log_path, listeners=len(sockets), pass_fds=descriptors) as daemon:
        yield daemon


@contextlib.contextmanager
def service_manager(path: str) -> Iterator[socket.socket]:
    """Give the socket at ``path`` that receives what is sent to NOTIFY_SOCKET, sd_notify(3)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(PATIENCE)
        yield manager
