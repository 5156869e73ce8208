"""What the daemon costs while it has nothing to do, and after it had a lot to do. No test here measures time."""

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from support import PATIENCE, Daemon, Start, connect, read_all, require, run_clients

EMPTY_UVLOOP_SERVER = """
import socket, uvloop
loop = uvloop.new_event_loop()
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(4096)
listener.setblocking(False)
loop.add_reader(listener, lambda: None)
print("ready", flush=True)
loop.run_forever()
"""


@pytest.fixture(autouse=True)
def linux() -> None:
    require(sys.platform == "linux", "Linux's /proc")


def empty_server_memory() -> int:
    """Return the resident set, in KiB, of a uvloop server that does nothing, in this interpreter."""
    with subprocess.Popen([sys.executable, "-c", EMPTY_UVLOOP_SERVER], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            return Daemon(process, Path(os.devnull)).memory()
        finally:
            process.kill()


def test_memory_is_within_5_percent_of_an_empty_uvloop_server(start: Start) -> None:
    """The whole of nullsmtpd costs less than a twentieth of what its interpreter and event loop cost."""
    compiled = subprocess.run([sys.executable, "-m", "compileall", "-q", "nullsmtpd"], check=False, timeout=PATIENCE)
    assert compiled.returncode == 0
    empty = statistics.median(empty_server_memory() for _ in range(3))
    ours = statistics.median(start().memory() for _ in range(3))
    assert ours / empty <= 1.05, f"{ours} KiB against {empty} KiB"


def test_it_is_one_thread_and_does_not_wake_up_while_idle(start: Start) -> None:
    """No timer ticks, neither at the start nor once clients have come and gone."""
    daemon = start()
    assert len(os.listdir(f"/proc/{daemon.pid}/task")) == 1
    for _ in range(2):
        assert daemon.wake_ups_within(2.0) == 0
        with connect(daemon.address) as client:
            read_all(client)


def test_100_000_connections_leave_nothing_behind(start: Start) -> None:
    """Memory has grown by no more than noise, and the descriptors are those of the start."""
    daemon = start()
    assert run_clients(daemon.address, "waits_for_the_line", 10_000, 200) == {"whole line": 10_000}
    daemon.wait_for(lambda: daemon.stats()["lingering"] == "0", "no one lingering")
    descriptors, memory = daemon.descriptors(), daemon.memory()
    for behaviour in ("waits_for_the_line", "sends_quit_first"):
        assert run_clients(daemon.address, behaviour, 50_000, 200) == {"whole line": 50_000}
    daemon.wait_for(lambda: daemon.stats()["lingering"] == "0", "no one lingering")
    assert daemon.stats()["connections"] == "110000"
    assert daemon.descriptors() == descriptors
    assert daemon.memory() - memory <= 256
