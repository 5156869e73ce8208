"""What /proc tells of processes: CPU time, context switches, memory, threads, descriptors (proc(5), Linux)."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

__all__ = ["Memory", "Usage", "children", "descriptors", "memory", "threads", "usage"]

_TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """What processes have used since they started. ``user_ns`` and ``system_ns`` come in ticks of 10 ms."""

    cpu_ns: int
    user_ns: int
    system_ns: int
    voluntary: int
    involuntary: int

    def since(self, earlier: "Usage") -> "Usage":
        """Return what was used after ``earlier``."""
        return Usage(*(now - then for now, then in zip(self, earlier, strict=True)))


class Memory(NamedTuple):
    """Memory of processes in KiB: summed, so that pages which they share count twice in ``rss`` but not in ``pss``."""

    rss: int
    pss: int
    private_dirty: int
    peak_rss: int


def usage(pids: Iterable[int]) -> Usage:
    """Return the sum over the processes, all their threads and the children that they have waited for.

    CPU time is that of the scheduler, in nanoseconds (/proc/PID/task/TID/schedstat), plus the ticks of dead children.
    Context switches are those of the living alone: no file has them for the dead.
    """
    total = [0, 0, 0, 0, 0]
    for pid in pids:
        stat = _read(pid, "stat").rpartition(")")[2].split()
        user, system, dead_user, dead_system = (int(field) * _TICK_NS for field in stat[11:15])
        total[0] += dead_user + dead_system
        total[1] += user + dead_user
        total[2] += system + dead_system
        for thread in os.listdir(f"/proc/{pid}/task"):
            total[0] += int(_read(pid, f"task/{thread}/schedstat").split()[0])
            status = _read(pid, f"task/{thread}/status")
            total[3] += _field(status, "voluntary_ctxt_switches")
            total[4] += _field(status, "nonvoluntary_ctxt_switches")
    return Usage(*total)


def memory(pids: Iterable[int]) -> Memory:
    """Return the sum over the processes."""
    total = [0, 0, 0, 0]
    for pid in pids:
        rollup = _read(pid, "smaps_rollup")
        for index, name in enumerate(("Rss", "Pss", "Private_Dirty")):
            total[index] += _field(rollup, name)
        total[3] += _field(_read(pid, "status"), "VmHWM")
    return Memory(*total)


def threads(pids: Iterable[int]) -> int:
    """Return how many threads the processes have together."""
    return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids)


def descriptors(pids: Iterable[int]) -> int:
    """Return how many open descriptors the processes have together."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


def children(pid: int) -> list[int]:
    """Return the living children of a process."""
    return [int(child) for child in _read(pid, f"task/{pid}/children").split()]


def _read(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def _field(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
    assert found, name
    return int(found[1])
