"""How many CPUs there are for us, from trees of control groups as the kernel shows them."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullsmtpd.responder.cpus import usable_cpus

AFFINITY = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpus_within(tmp_path: Path, own_groups: str, quotas: dict[str, str]) -> int:
    root = tmp_path / "cgroup"
    for name, content in quotas.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (tmp_path / "own").write_text(own_groups)
    return usable_cpus(str(tmp_path / "own"), str(root))


@pytest.mark.parametrize(
    ("own_groups", "quotas", "cpus"),
    [
        ("0::/\n", {}, AFFINITY),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n"}, AFFINITY),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000\n"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "100000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "1000 100000\n"}, 1),
        # The path is the host's, the mount our own group.
        ("0::/system.slice/x\n", {"cpu.max": "100000 100000\n"}, 1),
        (
            "4:cpu,cpuacct:/a\n3:memory:/\n",
            {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "100000"},
            1,
        ),
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, AFFINITY),
        ("0::/caf\u00e9\n", {"caf\u00e9/cpu.max": "1000 100000\n"}, 1),
        ("3:memory:/\n", {"cpu.max": "x"}, AFFINITY),
        ("0::/\n", {"cpu.max": "nonsense"}, AFFINITY),
    ],
)
def test_the_tightest_quota_holds(tmp_path: Path, own_groups: str, quotas: dict[str, str], cpus: int) -> None:
    """Versions 1 and 2, without a limit, with one of our own, with one further up, within a container."""
    assert cpus_within(tmp_path, own_groups, quotas) == cpus


@given(quota=st.integers(1, 10**9), period=st.integers(1000, 10**6))
def test_a_part_of_a_cpu_counts_as_one(tmp_path_factory: pytest.TempPathFactory, quota: int, period: int) -> None:
    """Invariant: the quota rounded up, and never more than the affinity allows, or less than one."""
    cpus = cpus_within(tmp_path_factory.mktemp("cpus"), "0::/\n", {"cpu.max": f"{quota} {period}\n"})
    assert cpus == min(AFFINITY, -(-quota // period))


def test_without_control_groups_the_affinity_decides(tmp_path: Path) -> None:
    """A host that has no /proc/self/cgroup."""
    assert usable_cpus(str(tmp_path / "none"), str(tmp_path)) == AFFINITY
