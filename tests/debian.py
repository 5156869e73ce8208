"""Debian 12 and 13 as chroots: how programs behave there, whichever distribution this machine runs.

    with chroot("trixie", ["python3-venv"]) as debian:
        shutil.copytree(source, debian.root / "srv/source")
        debian.run("python3", "-m", "venv", "/srv/venv")

Each chroot is new: an overlay in memory over a cached root file system, with namespaces of its own for mounts,
processes, the host name and, unless told otherwise, the network. When the block ends, or this process does, the kernel
ends every process in it and takes all mounts down. Nothing in it can write to the file system outside.

The root file systems (minbase, about 130 MB) are made once by mmdebstrap, with the apt sources and settings of this
machine, so by its mirrors and proxies; the packages of each combination are kept in an archive beside them. All of it
is in ``$XDG_CACHE_HOME/nullsmtpd-tests``, else in /var/cache/nullsmtpd-tests. Packages stay as they are there until
that directory is removed.

Needs root, and mmdebstrap.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from child import child, output
from support import require_root, require_tools

__all__ = [
    "MOUNT_ROOT",
    "NO_NETWORK",
    "OWN_NETWORK",
    "PIVOT_ROOT",
    "SUITES",
    "Chroot",
    "apt_settings",
    "apt_sources",
    "chroot",
]

#: The release of each suite.
SUITES = {"bookworm": "Debian 12", "trixie": "Debian 13"}

#: A network namespace with nothing but the loopback interface.
NO_NETWORK = ("unshare", "--net")

#: The network of this machine, with its mirrors.
OWN_NETWORK = ()

_PATIENCE = 60.0  # seconds for one command; several chroots may be busy at a time, on few processors
_BUILD_PATIENCE = 600.0  # seconds for apt

#: Shell code that mounts a root file system and makes it the working directory. Arguments: a directory to mount on, the
#: root file system below, an archive of the layer above it or nothing. The upper directory is in a tmpfs because it
#: must not be on an overlay, as the root of a container is. The shell reads its own process id, as it is outside, from
#: the /proc of its parent.
MOUNT_ROOT = """
set -e
read -r pid rest < /proc/self/stat
ip link set lo up
mount -t tmpfs tmpfs "$1"
cd "$1"
mkdir upper work root
[ -z "$3" ] || tar --extract --file="$3" --directory=upper --numeric-owner --xattrs --xattrs-include='*'
mount -t overlay overlay -o lowerdir="$2",upperdir=upper,workdir=work root
cd root
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs run
mkdir -m 1777 run/lock
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
mkdir -m 1777 dev/shm
mkdir dev/pts
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx
for device in 'null 1 3' 'zero 1 5' 'full 1 7' 'random 1 8' 'urandom 1 9' 'tty 5 0'; do
    mknod -m 666 dev/${device%% *} c ${device#* }
done
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
"""

#: Shell code that makes the working directory the root of its mount namespace.
PIVOT_ROOT = """
mkdir old
pivot_root . old
umount --lazy old
rmdir old
"""

# Further arguments: the host's name, the contents of resolv.conf. The shell becomes process 1 of the chroot: when it
# ends, as it does when its standard input does, the kernel ends everything in there. It waits for cat, not becomes it,
# as a shell that waits reaps every orphan.
_BOOT = f"""
{MOUNT_ROOT}
hostname "$4"
echo "$4" > etc/hostname
echo "$4" > etc/mailname
echo "127.0.0.1 localhost" > etc/hosts
printf '%s' "$5" > etc/resolv.conf
exec chroot . /bin/sh -c "echo $pid; cat; :"
"""

# Arguments: a command that is run in the end, and the packages; the answers to their questions on standard input.
_INSTALL = """
set -e
debconf-set-selections
command=$1
shift
apt-get update -q
apt-get install --yes --quiet --no-install-recommends "$@"
apt-get clean
rm -rf /var/lib/apt/lists/* /var/log/apt
sh -e -c "$command"
"""

# In a chroot no init runs, so a package's service must not start when it is installed: 101 is "forbidden by policy"
# (/usr/share/doc/init-system-helpers/README.policy-rc.d.gz).
_NO_SERVICES = r"""printf '#!/bin/sh\nexit 101\n' > "$1/usr/sbin/policy-rc.d"; chmod 755 "$1/usr/sbin/policy-rc.d" """


class Chroot:
    """A running chroot. ``pid``: its process 1, as seen from here."""

    def __init__(self, suite: str, pid: int) -> None:
        self.suite = suite
        self.pid = pid
        #: Its root directory, as seen from here.
        self.root = Path(f"/proc/{pid}/root")
        self._namespaces = ("nsenter", f"--target={pid}", "--mount", "--uts", "--pid", "--net")

    def command(self, *command: str, user: str = "root") -> list[str]:
        """Return the command which, run outside, runs this one inside, as one of the users there."""
        home = "/root" if user == "root" else f"/home/{user}"
        environment = ["env", "--ignore-environment", *ENVIRONMENT, *_proxies_and_certificates(), f"HOME={home}"]
        become = [] if user == "root" else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        return [*self._namespaces, "--root", "--wd", "--", *environment, *become, *command]

    def run(
        self, *command: str, user: str = "root", stdin: str = "", check: bool = True, patience: float = _PATIENCE
    ) -> str:
        """Run a command to its end; return and raise as `child.output` does."""
        return output(self.command(*command, user=user), self.suite, stdin=stdin, check=check, patience=patience)

    def shell(
        self, script: str, *arguments: str, user: str = "root", stdin: str = "", patience: float = _PATIENCE
    ) -> str:
        """Run a shell script, which ends at its first command that fails; return and raise as `run` does."""
        return self.run("sh", "-e", "-c", script, "sh", *arguments, user=user, stdin=stdin, patience=patience)

    def save(self, directory: Path, archive: Path) -> None:
        """Pack what was written in the chroot, which is mounted on ``directory``."""
        tar = ("tar", "--create", f"--directory={directory}/upper", "--numeric-owner", "--xattrs", "--one-file-system")
        subprocess.run([*self._namespaces, "--", *tar, f"--file={archive}", "."], check=True, timeout=_BUILD_PATIENCE)


ENVIRONMENT = (
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG=C.UTF-8",
    "DEBIAN_FRONTEND=noninteractive",
    "PIP_DISABLE_PIP_VERSION_CHECK=1",
    "PIP_ROOT_USER_ACTION=ignore",
)


@contextlib.contextmanager
def chroot(  # noqa: PLR0913 - each may differ on its own
    suite: str,
    packages: Sequence[str] = (),
    *,
    selections: str = "",
    prepare: str = "true",
    network: Sequence[str] = NO_NETWORK,
    hostname: str = "host.example",
) -> Iterator[Chroot]:
    """Run a chroot of ``suite`` with these packages, without what they merely recommend, until the end of the block.

    ``selections``: answers to the packages' questions, as for debconf-set-selections(1). ``prepare``: a shell script
    that was run once, after the installation, such as ``useradd --create-home alice``. ``network``: prefix of a
    command that runs in the network of the chroot: `NO_NETWORK`, `OWN_NETWORK` or another. The name server is
    127.0.0.1, except in `OWN_NETWORK`, where also pip works as on this machine.
    """
    require_root()
    require_tools("mmdebstrap", "ip", "nsenter", "setpriv", "tar", "unshare")
    archive = (
        _installed(suite, tuple(packages), selections, prepare, hostname) if packages or prepare != "true" else None
    )
    with _boot(suite, archive, network, hostname) as (running, _):
        yield running


@contextlib.contextmanager
def _boot(suite: str, archive: Path | None, network: Sequence[str], hostname: str) -> Iterator[tuple[Chroot, Path]]:
    base = _base(suite)
    resolv_conf = "nameserver 127.0.0.1\n" if network else Path("/etc/resolv.conf").read_text()
    unshare = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "sh", "-c", _BOOT, "sh")
    with tempfile.TemporaryDirectory(prefix="nullsmtpd-chroot-") as directory:
        arguments = (directory, str(base), str(archive or ""), hostname, resolv_conf)
        with _ended(child((*network, *unshare, *arguments))) as pid:
            running = Chroot(suite, pid)
            if not network:
                _copy_pip_settings(running.root)
            yield running, Path(directory)


@contextlib.contextmanager
def _ended(process: contextlib.AbstractContextManager[str]) -> Iterator[int]:
    """Yield the process id that a child prints; wait at the end until that process and its namespaces are gone."""
    with contextlib.ExitStack() as stack:
        with process as pid:
            handle = os.pidfd_open(int(pid))
            stack.callback(os.close, handle)
            yield int(pid)
        select.select([handle], [], [], _PATIENCE)  # process 1 of a namespace ends after all others (pid_namespaces(7))


def _base(suite: str) -> Path:
    """Return the root file system of a suite, made once for every state of this machine's apt."""
    sources, settings = apt_sources(suite), apt_settings()
    with _cached(suite, sources, settings, _NO_SERVICES) as (base, is_new):
        if is_new:
            with tempfile.TemporaryDirectory(dir=base.parent) as name:
                directory = Path(name)
                for file, text in (("sources", sources), ("settings", settings)):
                    (directory / file).write_text(text)
                mirrors = [str(directory / "sources")] if sources else []
                command = (
                    *("mmdebstrap", "--variant=minbase", "--mode=root", "--quiet", f"--aptopt={directory}/settings"),
                    *(f"--customize-hook={_NO_SERVICES}", suite, str(directory / "root"), *mirrors),
                )
                output(command, suite, patience=_BUILD_PATIENCE)
                (directory / "root").rename(base)
    return base


def _installed(suite: str, packages: Sequence[str], selections: str, prepare: str, hostname: str) -> Path:
    """Return the archive of what is put upon a root file system."""
    base = _base(suite)
    state = (base.name, _INSTALL, *packages, selections, prepare, hostname)
    with _cached(f"{suite}-{packages[0] if packages else 'prepared'}", *state) as (archive, is_new):
        if is_new:
            with (
                tempfile.TemporaryDirectory(dir=archive.parent) as name,
                _boot(suite, None, OWN_NETWORK, hostname) as (running, directory),
            ):
                running.run(
                    *("sh", "-c", _INSTALL, "sh", prepare, *packages), stdin=selections, patience=_BUILD_PATIENCE
                )
                new = Path(name) / "packages.tar"
                running.save(directory, new)
                new.rename(archive)
    return archive


@contextlib.contextmanager
def _cached(name: str, *made_from: str) -> Iterator[tuple[Path, bool]]:
    """Yield, locked, the path in the cache of what is made from these strings, and whether it has to be made."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "nullsmtpd-tests"
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{name}-{hashlib.sha256(chr(0).join(made_from).encode()).hexdigest()[:16]}"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # held by threads of one process apart, too
        yield path, not path.exists()


@functools.cache
def apt_sources(suite: str) -> str:
    """Return the apt sources of this machine for another suite of Debian; nothing where they are not Debian's."""
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    if not sources.exists():
        return ""
    here = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.MULTILINE)
    assert here
    return re.sub(rf"\b{here[1]}\b", suite, sources.read_text())


@functools.cache
def apt_settings() -> str:
    """Return the settings of apt on this machine that concern the connection to its mirrors."""
    settings = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return "".join(re.findall(r"^Acquire::(?:Check-\w+|https?::\S+) .*\n", settings, re.MULTILINE))


def _proxies_and_certificates() -> list[str]:
    """Return the variables of this machine's environment that pip and curl need to reach servers outside."""
    names = re.compile(r"PIP_CERT|SSL_CERT_FILE|(?:https?|no)_proxy", re.IGNORECASE)
    return [f"{name}={value}" for name, value in os.environ.items() if names.fullmatch(name)]


def _copy_pip_settings(root: Path) -> None:
    """Copy this machine's pip.conf and certificates, without which pip may not reach a package index from here."""
    certificates = [os.environ[name] for name in ("PIP_CERT", "SSL_CERT_FILE") if name in os.environ]
    for file in map(Path, ["/etc/pip.conf", *certificates]):
        if file.is_file():
            copy = root / file.relative_to("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
