"""What the tests share: the daemon as a real process, and what to do when a tool is missing."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nullsmtpd.cli.check import TABLE as CHECK_TABLE

# A test holds a thousand clients itself.
_, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (_hard, _hard))

LINE = b"521 Host does not accept mail\r\n"
MODES = ("close", "session", "mail")
CLIENTS = (sys.executable, "-m", "tests.crowd")  # a crowd of clients in a process of its own
PATIENCE = 20.0  # seconds; how long any single step of a test may take before it has failed


def require(condition: object, what: str) -> None:
    """Skip the test when ``what`` is missing on a developer's machine; in CI nothing may be missing."""
    if condition:
        return
    if os.environ.get("CI"):
        pytest.fail(f"CI lacks {what}")
    pytest.skip(f"needs {what}")


def require_tools(*names: str) -> None:
    """Require programs on the PATH, sbin included."""
    path = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
    for name in names:
        require(shutil.which(name, path=path), name)


def require_root() -> None:
    """Require what network namespaces and packet filters require."""
    require(os.geteuid() == 0, "root")


class Daemon:
    """One nullsmtpd process; ``lines`` grows with every line that it has logged."""

    def __init__(self, process: subprocess.Popen[bytes], log_path: Path) -> None:
        self.process = process
        self.log_path = log_path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def lines(self, event: str) -> list[str]:
        """Return the log lines of one event."""
        return [line for line in self.log.splitlines() if re.match(rf"\S+ {event}\b", line)]

    def addresses(self) -> list[tuple[str, int]]:
        """Return where it listens, as its start lines say."""
        found = re.findall(r" listening .*address=\[?([^\]\s]+?)\]?:(\d+)$", self.log, re.MULTILINE)
        return [(host, int(port)) for host, port in found]

    @property
    def address(self) -> tuple[str, int]:
        return self.addresses()[0]

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Wait until the condition holds; fail when the daemon ends first or patience does."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None and not condition():
                pytest.fail(f"ended with {self.process.returncode} before {what}: {self.log}")
            if time.monotonic() > deadline:
                pytest.fail(f"not in {PATIENCE} s: {what}: {self.log}")
            time.sleep(0.002)

    def stats(self) -> dict[str, str]:
        """Ask for a stats line by SIGUSR1 and return its fields."""
        before = len(self.lines("stats"))
        self.process.send_signal(signal.SIGUSR1)
        self.wait_for(lambda: len(self.lines("stats")) > before, "a stats line")
        return dict(field.split("=", 1) for field in self.lines("stats")[-1].split()[2:])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def memory(self) -> int:
        """Return the resident set in KiB."""
        return self._status("VmRSS")

    def children(self) -> list[int]:
        """Return the ids of the processes that it has forked and not buried yet."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def sleeps(self, pid: int | None = None) -> int:
        """Return how often it, or one of its children, has gone to sleep: once for each time that it woke up."""
        return self._status("voluntary_ctxt_switches", pid)

    def wait_until_idle(self) -> None:
        """Wait until no client is left."""
        gauges = ("lingering", "draining", "talking")
        self.wait_for(lambda: all(self.stats()[name] == "0" for name in gauges), "no client")

    def wake_ups_within(self, seconds: float) -> int:
        """Wait until no client is left, then count how often it wakes up in this time."""
        self.wait_until_idle()
        time.sleep(0.5)  # the last sweep comes after a quarter of a second
        before = self.sleeps()
        time.sleep(seconds)
        return self.sleeps() - before

    def _status(self, name: str, pid: int | None = None) -> int:
        match = re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid or self.pid}/status").read_text(), re.MULTILINE)
        assert match
        return int(match[1])


@contextlib.contextmanager
def running(command: Sequence[str], log_path: Path, *, listeners: int = 1, **options: Any) -> Iterator[Daemon]:  # noqa: ANN401
    """Run a command which is, or becomes, nullsmtpd until the end of the block; give it once it listens.

    ``listeners``: how many lines it logs by then. ``options``: those of `subprocess.Popen`.
    """
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stderr=log, **options)
    daemon = Daemon(process, log_path)
    try:
        daemon.wait_for(lambda: len(daemon.lines("listening")) >= listeners, "a listening line")
        yield daemon
    finally:
        _end(process)


Start = Callable[..., Daemon]


@contextlib.contextmanager
def starting(tmp_path: Path) -> Iterator[Start]:
    """Give a function that starts the daemon with arguments and waits until it listens; all are ended afterwards.

    Whatever a test does to it, no daemon may have made a mistake of its own.
    """
    started: list[Daemon] = []
    with contextlib.ExitStack() as stack:

        def start_daemon(
            *arguments: str,
            env: dict[str, str] | None = None,
            nofile: int | None = None,
            prefix: Sequence[str] = (),
            listen: str | None = "127.0.0.1:0",
            count: int = 1,
        ) -> Daemon:
            def limit() -> None:
                if nofile is not None:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))

            log_path = tmp_path / f"nullsmtpd-{len(started)}.log"
            command = [*prefix, sys.executable, "-m", "nullsmtpd", *arguments]
            if listen is not None:
                command += ["--listen", listen]
            options = {"env": os.environ | (env or {}), "preexec_fn": limit}
            daemon = stack.enter_context(running(command, log_path, listeners=count, **options))
            started.append(daemon)
            return daemon

        yield start_daemon
    for daemon in started:
        assert not daemon.lines("internal-error")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return what `starting` gives, for one test."""
    with starting(tmp_path) as start_daemon:
        yield start_daemon


def _end(process: subprocess.Popen[bytes]) -> None:
    if "COVERAGE_PROCESS_CONFIG" in os.environ:  # a process that is killed leaves no measurement
        for seconds in (0.05, 2.0):  # the second SIGTERM ends it at once
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
    if process.poll() is None:
        process.kill()
    process.wait()


@pytest.fixture
def daemon(start: Start) -> Daemon:
    """Return a daemon with the default options on a loopback port."""
    return start()


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process be at a limit of processes: no thread can be started any more."""

    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)


def connect(address: tuple[str, int]) -> socket.socket:
    """Open a connection that fails rather than waits forever."""
    return socket.create_connection(address, timeout=PATIENCE)


def read_all(connection: socket.socket) -> bytes:
    """Read until the FIN. A reset, or a server that stays silent, is an exception."""
    return b"".join(iter(lambda: connection.recv(4096), b""))


def call_as(uid: int, function: Callable[[], object]) -> str:
    """Call a function in a process of this user and group alone; return its result, or its error, as text."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.write(writer, str(function()).encode())
        except Exception as error:  # noqa: BLE001 - its text is the outcome
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with os.fdopen(reader) as outcome:
        return outcome.read()


def run_clients(  # noqa: PLR0913 - what a crowd is made of
    address: tuple[str, int],
    behaviour: str,
    count: int,
    concurrency: int,
    *,
    patience: float = 30.0,
    prefix: Sequence[str] = (),
) -> dict[str, int]:
    """Run a crowd of clients in a process of their own and return how many of them had which outcome."""
    crowd = [*CLIENTS, *map(str, (*address, behaviour, count, concurrency, patience))]
    result = subprocess.run([*prefix, *crowd], capture_output=True, text=True, check=True, timeout=300)
    outcomes: dict[str, int] = json.loads(result.stdout)
    return outcomes


def run_cli(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command until it ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "nullsmtpd", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ | (env or {}),
        check=False,
    )


def check_options() -> dict[str, str]:
    """Return the options of ``check`` in the order of --help, each with what stands for its value there, if any."""
    return {name: option.metavar for name, option in CHECK_TABLE.items()}
