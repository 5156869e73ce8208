"""Debian 12 and 13 with systemd as process 1, in a chroot of `debian`: what a user's commands do on a host.

    with booted("trixie") as host:
        host.shell("apt install --yes python3-venv")

It has a network of its own, with nothing but loopback. So that commands which download work there as they are printed,
the packages and wheels that they ask for are in the chroot already: in apt's archive of downloads, and in a directory
that pip.conf names. They come from where this machine gets them (see `debian`).
"""

import atexit
import contextlib
import functools
import shutil
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from child import child, output
from debian import ENVIRONMENT, OWN_NETWORK, PIVOT_ROOT, Chroot, chroot
from support import PATIENCE
from systemd_machine import cgroup

__all__ = ["ADDRESS_4", "ADDRESS_6", "Booted", "booted", "copy_source"]

ROOT = Path(__file__).parent.parent

DOWNLOAD_PATIENCE = 120.0  # seconds

#: The host's public addresses, beside those of loopback (RFC 5737, RFC 3849: never an address of anyone).
ADDRESS_4, ADDRESS_6 = "192.0.2.25", "2001:db8::25"

# What a Debian that was installed with "standard system utilities" left out has, as far as documents use it.
_BARE = ("systemd-sysv", "iproute2", "man-db", "netbase", "procps")

# They load kernel modules, or run apt while a test does.
_MASKED = ("systemd-modules-load.service", "apt-daily.timer", "apt-daily-upgrade.timer")

# The root directory of the chroot's mount namespace is still that of this machine. systemd gives each service a mount
# namespace and a user namespace, and the kernel makes none of the latter in a chroot (user_namespaces(7)), so the
# directory becomes the root of a namespace. Arguments: units to mask, the host's addresses.
_BOOT = f"""
set -e
read -r pid rest < /proc/self/stat
{PIVOT_ROOT}
mount -t proc proc /proc
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for address in $2; do
    ip address add "$address" dev lo
done
for unit in $1; do
    ln -s /dev/null "/etc/systemd/system/$unit"
done
echo "$pid"
exec env --ignore-environment container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd
"""


class Booted:
    """A running host. ``root``: its root directory, as seen from here."""

    def __init__(self, debian: Chroot, pid: int) -> None:
        self.suite = debian.suite
        self.root = debian.root
        self._prefix = ("nsenter", f"--target={pid}", "--all", "--root", "--wd", "--", "env", "-i", *ENVIRONMENT)

    def command(self, *command: str) -> list[str]:
        """Return the command which, run outside, runs this one inside, as root in its home directory."""
        return [*self._prefix, *command]

    def run(self, *command: str, check: bool = True, patience: float = 3 * PATIENCE) -> str:
        """Run a command to its end; return and raise as `child.output` does."""
        return output(self.command(*command), self.suite, check=check, patience=patience)

    def wait_until_up(self) -> None:
        """Wait until systemd has started everything that is enabled."""
        deadline = time.monotonic() + PATIENCE
        while (state := self.run("systemctl", "is-system-running", "--wait", check=False).strip()) != "running":
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.suite}: {state}: {self.run('systemctl', '--failed', '--no-pager')}")
            time.sleep(0.05)


@contextlib.contextmanager
def booted(suite: str, packages: Sequence[str] = (), downloads: Sequence[str] = ()) -> Iterator[Booted]:
    """Boot a host with these packages, beside those of a bare Debian, and shut it down at the end of the block.

    ``downloads``: packages that apt can install there without a network. pip can install what this project needs.
    """
    prepare = f"apt-get update -q; apt-get install --yes -q --download-only {' '.join(downloads)}" if downloads else ":"
    with cgroup() as group, chroot(suite, [*_BARE, *packages], prepare=prepare) as debian:
        _go_offline(debian)
        into = f'echo $$ > {group}/cgroup.procs && exec "$@"'
        enter = ("nsenter", f"--target={debian.pid}", "--mount", "--uts", "--pid", "--net", "--wd", "--")
        spaces = ("unshare", "--mount", "--ipc", "--cgroup", "--pid", "--fork", "--kill-child")
        arguments = (" ".join(_MASKED), f"{ADDRESS_4}/32 {ADDRESS_6}/128")
        with child(("sh", "-c", into, "sh", *enter, *spaces, "sh", "-c", _BOOT, "sh", *arguments)) as pid:
            host = Booted(debian, int(pid))
            host.wait_until_up()
            yield host


def _go_offline(debian: Chroot) -> None:
    """Let pip find what building and running this project takes in a directory, and nowhere else."""
    shutil.copytree(_wheels(debian.suite), debian.root / "srv/wheels")
    (debian.root / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /srv/wheels\n")
    # `apt update` finds no mirror, warns and goes on with the lists that it has; otherwise after seconds of retries.
    (debian.root / "etc/apt/apt.conf.d/99-no-network").write_text('Acquire::Retries "0";\n')


@functools.cache
def _wheels(suite: str) -> Path:
    """Return a directory with the wheels that the suite's pip downloads. It is removed when this process ends."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in project["project"]["optional-dependencies"].values():
        needed += extra
    directory = Path(tempfile.mkdtemp(prefix="nullsmtpd-wheels-"))
    atexit.register(shutil.rmtree, directory)
    with chroot(suite, ["python3-venv"], network=OWN_NETWORK) as debian:
        debian.run("python3", "-m", "venv", "/srv/venv")
        debian.run(
            "/srv/venv/bin/pip", "download", "--quiet", "--dest=/srv/wheels", *needed, patience=DOWNLOAD_PATIENCE
        )
        shutil.copytree(debian.root / "srv/wheels", directory, dirs_exist_ok=True)
    return directory


def copy_source(destination: Path) -> None:
    """Copy this checkout as a clone has it, uncommitted changes included."""
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    shutil.copytree(ROOT, destination, ignore=shutil.ignore_patterns(".git", *ignored))
