"""A systemd of the tests' own, and what systemd-analyze finds in units.

That systemd is process 1 of a machine made of namespaces: this one's root file system with a writable layer on top, a
network with nothing but loopback, a cgroup, and in /opt/nullsmtpd what ``pip install`` makes of this checkout. Of the
units of this system only `STANDARD_UNITS` are there, so nothing else is started, and nothing outside is touched.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from debian import MOUNT_ROOT, PIVOT_ROOT
from support import CLIENTS, PATIENCE, require, require_root, require_tools

__all__ = ["PIP_PATIENCE", "ROOT", "UNITS", "Machine", "complaints", "exposure", "machine", "outcomes"]

ROOT = Path(__file__).parent.parent
UNITS = [ROOT / "deploy" / name for name in ("nullsmtpd.socket", "nullsmtpd.service")]
SYSTEMD = Path("/lib/systemd/systemd")
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
PIP_PATIENCE = 120.0  # seconds: a build, and a download where nothing is cached

# What a unit refers to by default (systemd.special(7)), and the journal.
STANDARD_UNITS = (
    *("basic.target", "local-fs.target", "paths.target", "shutdown.target", "slices.target", "sockets.target"),
    *("swap.target", "sysinit.target", "timers.target", "umount.target"),
    *("systemd-journald.service", "systemd-journald.socket"),
)

# Further arguments: the prefix of a Python, a directory of wheels, one of units, a Python's name. The shell becomes the
# machine's process 1. The Python may lie where the service is let see nothing, so it gets a second place, and its
# shared library is looked for there.
_BOOT = f"""
{MOUNT_ROOT}
mount --bind -o ro proc/sys proc/sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mkdir -p opt/python opt/nullsmtpd opt/wheels run/units
mount --bind "$4" opt/python
mount --bind "$5" opt/wheels
cp "$6"/* run/units
echo LD_LIBRARY_PATH=/opt/python/lib > etc/default/nullsmtpd
mkdir run/units/sysinit.target.wants
ln -s ../systemd-journald.socket run/units/sysinit.target.wants
{PIVOT_ROOT}
/opt/python/bin/"$7" -m venv /opt/nullsmtpd
/opt/nullsmtpd/bin/pip install --quiet --no-index --find-links /opt/wheels nullsmtpd-521 >&2
echo "$pid"
exec env --ignore-environment container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_UNIT_PATH=/run/units \
    /lib/systemd/systemd --unit=nullsmtpd.socket
"""


def analyze(verb: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    require_tools("systemd-analyze")
    return subprocess.run(
        ["systemd-analyze", verb, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def complaints(units: list[Path]) -> str:
    """Return what `verify` says: of an unknown key it says so, and exits with 0."""
    return analyze("verify", "--man=no", *units).stderr


def exposure(unit: Path) -> float:
    result = analyze("security", "--offline=yes", "--no-pager", unit)
    match = re.search(r"Overall exposure level for \S+: ([\d.]+)", result.stdout)
    assert match, result.stderr
    return float(match[1])


class Machine:
    """A running systemd, by the process id of its process 1 as seen from here."""

    def __init__(self, pid: str) -> None:
        self._pid = pid
        self._prefix = ("nsenter", f"--target={pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")

    def command(self, *command: str) -> list[str]:
        return [*self._prefix, "--root", "--wd", "--", *command]

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in the machine and return what it printed."""
        result = subprocess.run(
            self.command(*command), capture_output=True, text=True, timeout=3 * PATIENCE, check=False
        )
        if check and result.returncode:
            pytest.fail(f"{command} ended with {result.returncode}: {result.stderr}{self.journal()}")
        return result.stdout

    def journal(self) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit=nullsmtpd.service", check=False)

    def state(self, name: str) -> str:
        """Return a property of the service."""
        return self.run("systemctl", "show", "--value", f"--property={name}", "nullsmtpd.service").strip()

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"not in {PATIENCE} s: {what}: {self.journal()}")
            time.sleep(0.02)

    def clients(self, host: str, count: int = 1) -> subprocess.Popen[str]:
        """Let clients that speak first connect, 16 at a time."""
        arguments = (host, "25", "sends_quit_first", str(count), str(min(count, 16)), "30")
        command = ("nsenter", f"--target={self._pid}", "--net", "--", *CLIENTS, *arguments)
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def answers(self, *hosts: str) -> None:
        """Check that a client of each address gets the line."""
        for host in hosts:
            with self.clients(host) as client:
                assert outcomes(client) == {"whole line": 1}, self.journal()

    def write(self, path: str, text: str) -> None:
        """Write a file in the machine."""
        self.run("sh", "-c", 'mkdir -p "$(dirname "$0")" && printf %s "$1" > "$0"', path, text)

    @contextlib.contextmanager
    def drop_in(self, text: str, *, unit: str = "nullsmtpd.service", restart: Sequence[str] = ()) -> Iterator[None]:
        """Have a drop-in for a unit for the length of the block; restart the unit, or others, before and after it."""
        directory = f"/run/units/{unit}.d"
        self.write(f"{directory}/test.conf", text)
        try:
            self._restart(restart or [unit])
            yield
        finally:
            self.run("rm", "-r", directory)
            self._restart(restart or [unit])

    def _restart(self, units: Sequence[str]) -> None:
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "restart", *units)


def outcomes(clients: subprocess.Popen[str]) -> dict[str, int]:
    """Return what became of the clients."""
    said, _ = clients.communicate(timeout=3 * PATIENCE)
    counts: dict[str, int] = json.loads(said)
    return counts


def build_wheels(directory: Path) -> None:
    """Put the wheels of this checkout and of what it needs into a directory."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(directory), str(ROOT)]
    subprocess.run(pip, check=True, timeout=PIP_PATIENCE)


@contextlib.contextmanager
def cgroup() -> Iterator[Path]:
    """Make a control group below our own, for a systemd to have to itself, and remove it with all that is in it."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    where = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]
    require(where, "control groups, version 2")
    own = re.search(r"^0::/(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    assert own
    group = where[0] / own[1] / f"nullsmtpd-test-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        deadline = time.monotonic() + PATIENCE
        while "populated 1" in (group / "cgroup.events").read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        for directory, _, _ in os.walk(group, topdown=False):
            Path(directory).rmdir()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Boot a machine with the socket unit started, and switch it off at the end."""
    require_root()
    require(SYSTEMD.exists(), "systemd")
    require_tools("ip", "nsenter", "setpriv", "unshare")
    directory, wheels, units = (tmp_path_factory.mktemp(name) for name in ("machine", "wheels", "units"))
    build_wheels(wheels)
    for unit in (*(SYSTEMD.with_name("system") / name for name in STANDARD_UNITS), *UNITS):
        shutil.copy(unit, units)
    spaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child", "--cgroup")
    with cgroup() as group:
        into = f'echo $$ > {group}/cgroup.procs && exec unshare {" ".join(spaces)} sh -c "$0" sh "$@"'
        arguments = (str(directory), "/", "", sys.base_prefix, str(wheels), str(units), PYTHON)
        command = ("setpriv", "--pdeathsig", "KILL", "sh", "-c", into, _BOOT, *arguments)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as init:
            try:
                assert init.stdout
                pid = init.stdout.readline().strip()
                assert pid, "the machine did not boot"
                machine = Machine(pid)
                is_up = machine.command("systemctl", "--quiet", "is-active", "nullsmtpd.socket")
                machine.wait_for(
                    lambda: subprocess.run(is_up, capture_output=True, check=False).returncode == 0, "boot"
                )
                yield machine
            finally:
                init.kill()
