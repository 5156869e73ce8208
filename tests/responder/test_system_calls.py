"""The system calls of the process, read from a real strace and compared with what is documented."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import LINE, Daemon, Start, connect, read_all, require, require_tools

#: What one client of mode `close` costs beside the event loop's own epoll_wait: the calls of the accept path, and later
#: those of the sweep that finds the connection finished.
ONE_CLIENT = ["accept4", "getsockname", "sendto", "shutdown", "getsockopt", "close"]


@pytest.fixture(autouse=True)
def linux() -> None:
    require(sys.platform == "linux", "strace")
    require_tools("strace")


class Trace:
    """What strace has written so far."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def calls(self) -> list[str]:
        """Return the names of the calls that were completed, without waiting for events."""
        names = re.findall(r"^(\w+)\(.*= ", self._path.read_text(), re.MULTILINE)
        return [name for name in names if name not in {"epoll_wait", "epoll_pwait", "epoll_pwait2", "restart_syscall"}]

    @property
    def waits(self) -> int:
        """Return how often it has waited for events, and something happened."""
        return len(re.findall(r"^epoll_p?wait2?\(.*\) = ", self._path.read_text(), re.MULTILINE))


@contextmanager
def traced(daemon: Daemon, path: Path) -> Iterator[Trace]:
    """Trace the daemon until the end of the block."""
    with subprocess.Popen(["strace", "-p", str(daemon.pid), "-o", path], stderr=subprocess.PIPE) as tracer:
        try:
            assert tracer.stderr
            assert b"attached" in tracer.stderr.readline()
            yield Trace(path)
        finally:
            tracer.terminate()


def test_an_idle_process_makes_no_system_call(start: Start, tmp_path: Path) -> None:
    """Neither at the start nor after a client: not even to wait anew."""
    daemon = start()
    for number in range(2):
        assert daemon.wake_ups_within(0) == 0
        with traced(daemon, tmp_path / f"trace-{number}") as trace:
            time.sleep(1.5)  # the time in which nothing must happen
            assert (trace.calls, trace.waits) == ([], 0)
        with connect(daemon.address) as client:
            assert read_all(client) == LINE


def test_one_client_takes_exactly_the_documented_system_calls(start: Start, tmp_path: Path) -> None:
    """The accept path's, and two of the sweep once the client has closed."""
    daemon = start()
    assert daemon.wake_ups_within(0) == 0
    with traced(daemon, tmp_path / "trace") as trace:
        for number in range(1, 4):
            with connect(daemon.address) as client:
                assert read_all(client) == LINE
            daemon.wait_for(lambda n=number: trace.calls.count("close") == n, "the sweep")  # type: ignore[misc]
        assert trace.calls == ONE_CLIENT * 3
