"""How many CPUs this process may use: its affinity (sched_setaffinity(2)), and the quota of its control groups."""

import math
import os
from pathlib import Path

__all__ = ["usable_cpus"]

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def usable_cpus(own_groups: Path = _OWN_GROUPS, cgroups: Path = _CGROUPS) -> int:
    """Return the number of CPUs, at least 1; a quota of one and a half counts as two.

    ``own_groups`` lists the control groups of this process, ``cgroups`` is where they are mounted; of a group within
    others the tightest quota holds (Documentation/admin-guide/cgroup-v2.rst, ``cpu.max``).
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for group in _groups(own_groups, cgroups) if (quota := _quota(group))]
    return max(1, min(cpus, *(math.ceil(quota) for quota in quotas))) if quotas else cpus


def _groups(own_groups: Path, cgroups: Path) -> list[Path]:
    """Return the directories that may hold a quota: this process's own and those above it."""
    try:
        lines = own_groups.read_text().splitlines()
    except OSError:  # not Linux
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root = cgroups  # version 2
        elif "cpu" in controllers.split(","):
            root = cgroups / "cpu"  # version 1
        else:
            continue
        # Within a container the path may be the host's, and only the mount's root be there.
        own = root / path.lstrip("/")
        found += [group for group in (own, *own.parents) if group == root or root in group.parents]
    return found


def _quota(group: Path) -> float | None:
    """Return how many CPUs the group may use; ``None`` without a limit."""
    try:
        unified = group / "cpu.max"
        if unified.exists():
            quota, period = map(int, unified.read_text().split())
        else:
            quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    except (OSError, ValueError):  # no such file, or "max"
        return None
    return quota / period if quota > 0 else None
