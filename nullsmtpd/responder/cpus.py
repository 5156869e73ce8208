"""How many CPUs this process may use: its affinity (sched_setaffinity(2)), and the quota of its control groups."""

import math
import os

__all__ = ["usable_cpus"]


def usable_cpus(own_groups: str = "/proc/self/cgroup", cgroups: str = "/sys/fs/cgroup") -> int:
    """Return the number of CPUs, at least 1; a quota of one and a half counts as two.

    ``own_groups`` lists the control groups of this process, ``cgroups`` is where they are mounted; of a group within
    others the tightest quota holds (Documentation/admin-guide/cgroup-v2.rst, ``cpu.max``).
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [math.ceil(quota) for group in _groups(own_groups, cgroups) if (quota := _quota(group))]
    return min([cpus, *quotas])


def _groups(own_groups: str, cgroups: str) -> list[str]:
    """Return the directories that may hold a quota: this process's own and those above it."""
    try:
        lines = _read(own_groups).splitlines()
    except OSError:  # not Linux
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            group = cgroups  # version 2
        elif "cpu" in controllers.split(","):
            group = f"{cgroups}/cpu"  # version 1
        else:
            continue
        found.append(group)
        # Within a container the path may be the host's, and only the mount's root be there.
        for name in path.strip("/").split("/"):
            group = f"{group}/{name}"
            found.append(group)
    return found


def _quota(group: str) -> float | None:
    """Return how many CPUs the group may use; ``None`` without a limit."""
    try:
        if os.access(f"{group}/cpu.max", os.F_OK):
            quota, period = map(int, _read(f"{group}/cpu.max").split())
        else:
            quota, period = (int(_read(f"{group}/cpu.cfs_{name}_us")) for name in ("quota", "period"))
    except (OSError, ValueError):  # no such file, or "max"
        return None
    return quota / period if quota > 0 else None


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123 - pathlib is a hundred kilobytes of the image
        return file.read()
