"""What the machine says: CPU time, memory and open files of a process, the kernel's TCP counters, who was measured."""

import contextlib
import os
import platform
import re
import resource
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

_OTHER_FILES = 64  # open files of this process beside connections
_TRACKED = "sys/net/netfilter/nf_conntrack_count"  # connections, which cost the kernel time; only with the module
_CPUS = sorted(os.sched_getaffinity(0))  # before anything is pinned


def cpu_ns(pids: Iterable[int]) -> int:
    """Return the user and system time of the processes in nanoseconds (/proc/PID/task/TID/schedstat, proc(5))."""
    tasks = (f"{pid}/task/{thread}" for pid in pids for thread in os.listdir(f"/proc/{pid}/task"))
    return sum(int(_read(f"{task}/schedstat").split()[0]) for task in tasks)


def memory(pids: Iterable[int]) -> tuple[int, int]:
    """Return the processes' memory in KiB: resident, and not shared with any other process (/proc/PID/smaps_rollup)."""
    kib: Counter[str] = Counter()
    for pid in pids:
        for name, size in re.findall(r"^(\w+):\s+(\d+) kB", _read(f"{pid}/smaps_rollup"), re.MULTILINE):
            kib[name] += int(size)
    return kib["Rss"], kib["Private_Clean"] + kib["Private_Dirty"]


def open_files(pids: Iterable[int]) -> int:
    """Return how many open files the processes have together."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


def children(pid: int) -> list[int]:
    """Return the living children of a process."""
    return [int(child) for child in _read(f"{pid}/task/{pid}/children").split()]


def kernel_counters() -> dict[str, int]:
    """Return what the accept queues have lost, and the TCP retransmissions, in this network namespace."""
    counters: dict[str, str] = {}
    for path in ("net/netstat", "net/snmp"):
        lines = [line.split() for line in _read(path).splitlines()]
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            counters |= zip(names, values, strict=True)
    return {name: int(counters[name]) for name in ("ListenOverflows", "ListenDrops", "RetransSegs")}


@contextlib.contextmanager
def pinned(cpus: set[int]) -> Iterator[None]:
    """Have this process, and what it starts meanwhile, run on ``cpus``."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def server_cpus(count: int = 1) -> set[int]:
    """Return the CPUs for ``count`` server processes: the first ones, as long as one is left for the clients."""
    return set(_CPUS[: max(1, min(count, len(_CPUS) - 1))])


def client_cpus(count: int = 1) -> set[int]:
    """Return the CPUs beside those of ``count`` server processes, or the same one when there is no other."""
    return set(_CPUS) - server_cpus(count) or server_cpus()


def need_files(count: int, what: str) -> int:
    """Raise the soft limit of open files to the hard one, and return how many connections that allows.

    Raises `ValueError` for fewer than ``count``, which ``what`` needs.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if (room := hard - _OTHER_FILES) < count:
        raise ValueError(f"{what} needs {count:,} open files, and may have {max(room, 0):,}: raise `ulimit -Hn` first")
    return room


def describe() -> dict[str, str | int | None]:
    """Return what a reader needs in order to judge or repeat a measurement."""
    cpu = re.search(r"^model name\s*: (.*)", _read("cpuinfo"), re.MULTILINE)
    return {
        "commit": _commit(),
        "kernel": f"{platform.system()} {platform.release()}",
        "cpus": len(_CPUS),
        "cpu": cpu[1] if cpu else platform.machine(),
        "python": platform.python_version(),
        "uvloop": metadata.version("uvloop"),
        "somaxconn": int(_read("sys/net/core/somaxconn")),
        "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "congestion_control": _read("sys/net/ipv4/tcp_congestion_control").strip(),
        "conntrack": int(_read(_TRACKED)) if Path("/proc", _TRACKED).exists() else None,
    }


def _commit() -> str | None:
    """Return the commit that is measured, with a mark when the work tree differs from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    with contextlib.suppress(OSError):  # no git
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    return None


def _read(path: str) -> str:
    return Path("/proc", path).read_text()
