"""What goes wrong around a daemon, brought about from outside: it is stopped, or its system calls fail."""

import contextlib
import ctypes
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from support import Daemon, require_root, require_tools

__all__ = ["failing", "injecting", "inside", "network", "stopped"]


@contextlib.contextmanager
def stopped(daemon: Daemon) -> Iterator[None]:
    """Keep the daemon from running, so that what clients do meanwhile has happened before it continues."""
    daemon.process.send_signal(signal.SIGSTOP)
    daemon.wait_for(lambda: "T (stopped)" in Path(f"/proc/{daemon.pid}/status").read_text(), "the stop")
    try:
        yield
    finally:
        daemon.process.send_signal(signal.SIGCONT)


def injecting(trace: Path, faults: str) -> list[str]:
    """Return a command before which strace makes the kernel's answers fail, as ``CALL:error=NAME:when=FIRST..LAST``."""
    require_tools("strace")
    call = faults.partition(":")[0]
    # -D: the tracer is the grandchild, so that signals sent to the child reach the daemon.
    return ["strace", "-D", "-f", "-q", "-o", str(trace), "-e", f"trace={call}", "-e", f"inject={faults}"]


@contextlib.contextmanager
def failing(daemon: Daemon, trace: Path, faults: str) -> Iterator[None]:
    """Make system calls of a running daemon fail; at least one of them must have been made by the end of the block."""
    require_tools("strace")
    tracer = subprocess.Popen(
        ["strace", "-p", str(daemon.pid), "-o", trace, "-e", f"inject={faults}"], stderr=subprocess.PIPE
    )
    with tracer:
        try:
            assert tracer.stderr
            assert b"attached" in tracer.stderr.readline()
            yield
            daemon.wait_for(lambda: "(INJECTED)" in trace.read_text(), "a call that fails")
        finally:
            tracer.terminate()


def network(command: str = ":") -> list[str]:
    """Return a command before which a daemon has a network of its own, set up by a shell command."""
    require_root()
    require_tools("unshare", "ip", "nsenter")
    return ["unshare", "--net", "sh", "-c", f'ip link set lo up && {command} && exec "$@"', "sh"]


@contextlib.contextmanager
def inside(daemon: Daemon) -> Iterator[None]:
    """Make sockets in the network of the daemon; they stay there."""
    setns = ctypes.CDLL(None, use_errno=True).setns
    with open("/proc/self/ns/net") as ours, open(f"/proc/{daemon.pid}/ns/net") as theirs:  # noqa: PTH123 - descriptors
        assert setns(theirs.fileno(), 0) == 0
        try:
            yield
        finally:
            assert setns(ours.fileno(), 0) == 0
