"""What the numbers were taken on, and what the kernel's TCP counted meanwhile."""

import os
import platform
import resource
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

__all__ = ["describe", "kernel_counters", "one_line", "other_cpus", "raise_nofile", "server_cpus"]

_COUNTERS = {
    "ListenOverflows": ("/proc/net/netstat", "TcpExt:"),
    "ListenDrops": ("/proc/net/netstat", "TcpExt:"),
    "TCPRetransSegs": ("/proc/net/snmp", "Tcp:"),
}


def describe() -> dict[str, str | int | None]:
    """Return what a reader needs in order to judge or repeat a measurement."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "commit": _commit(),
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpus": len(_cpus()),
        "python": platform.python_version(),
        "uvloop": _version("uvloop"),
        "libuv": _libuv(),
        "nullsmtpd": _version("nullsmtpd-521"),
        "somaxconn": _sysctl("net/core/somaxconn"),
        "congestion_control": _sysctl("net/ipv4/tcp_congestion_control"),
        "port_range": _sysctl("net/ipv4/ip_local_port_range"),
        "nofile_soft": soft,
        "nofile_hard": hard,
        "conntrack": _conntrack(),
    }


def one_line(facts: dict[str, str | int | None]) -> str:
    """Return the facts that decide most, in one line."""
    return (
        f"commit {facts['commit']}, {facts['kernel']}, "
        f"{facts['cpus']} x {facts['cpu']}, Python {facts['python']}, uvloop {facts['uvloop']} "
        f"(libuv {facts['libuv']}), somaxconn {facts['somaxconn']}, nofile {facts['nofile_hard']}, "
        f"{facts['congestion_control']}, conntrack {facts['conntrack']}"
    )


def kernel_counters() -> dict[str, int]:
    """Return the listen queue's losses and TCP retransmissions of this network namespace; empty but on Linux."""
    counters = {}
    for name, (path, prefix) in _COUNTERS.items():
        try:
            lines = [line.split() for line in Path(path).read_text().splitlines() if line.startswith(prefix)]
        except OSError:
            return {}
        named = dict(zip(lines[0], lines[1], strict=True))
        counters[name] = int(named[name.removeprefix("TCP") if prefix == "Tcp:" else name])
    return counters


def server_cpus() -> set[int]:
    """Return the one CPU that servers are measured on."""
    return {min(_cpus())}


def other_cpus() -> set[int]:
    """Return the CPUs for everything else: all but the server's, or that one when there is no other."""
    return _cpus() - server_cpus() or _cpus()


def raise_nofile() -> int:
    """Raise the soft limit of open files to the hard one and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return soft
    return hard


def _cpus() -> set[int]:
    if sys.platform == "linux":
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the commit that is measured, with a mark when the work tree differs from it."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _libuv() -> str | None:
    try:
        from uvloop import loop
    except ImportError:
        return None
    number = int(loop.libuv_get_version())  # type: ignore[attr-defined]  # uv.h: major << 16 | minor << 8 | patch
    return f"{number >> 16}.{number >> 8 & 255}.{number & 255}"


def _sysctl(name: str) -> str | None:
    try:
        return " ".join(Path("/proc/sys", name).read_text().split())
    except OSError:
        return None


def _conntrack() -> str:
    """Tell whether connections are being tracked; a loaded module without a rule that uses it tracks none."""
    count = _sysctl("net/netfilter/nf_conntrack_count")
    if count is None:
        return "off"
    return f"on, {count} of {_sysctl('net/netfilter/nf_conntrack_max')} entries" if int(count) else "loaded, no entries"
