"""A machine of a sender's own: this one's root file system with a Debian package on top, gone when the test is.

Mail servers conflict as packages, and each wants its users, its queue and its stock configuration. So apt installs each
one into the upper directory of an overlay over /, once; that layer is kept as an archive. A test boots a machine from
it: the layer unpacked in a tmpfs, an overlay over /, and namespaces for mounts, processes and the host name. The tmpfs
is what makes it work everywhere: an upper directory must not lie within its lower one, nor on another overlay, as the
root of a container is. Nothing that runs in the machine can write to the file system outside.
"""

import contextlib
import hashlib
import os
import subprocess
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from child import child
from network import SENDING, Network

__all__ = ["Machine", "boot", "build_layer"]

_PATIENCE = 20.0
_BUILD_PATIENCE = 300.0  # seconds for apt

_building: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # by the layer's name

# Arguments: a directory to mount on, the layer's archive or nothing, the host's name, the contents of resolv.conf.
# The shell reads its own process id from the /proc of its parent, and becomes process 1 of the machine: when it ends,
# as it does when its standard input does, the kernel ends everything in there and takes the mounts down.
_BOOT = """
set -e
read -r pid rest < /proc/self/stat
mount -t tmpfs tmpfs "$1"
cd "$1"
mkdir upper work root
[ -z "$2" ] || tar --extract --file="$2" --directory=upper --numeric-owner --xattrs --xattrs-include='*'
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cd root
mount -t proc proc proc
mount -t tmpfs -o mode=755 tmpfs run
mkdir -m 1777 run/lock
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
mkdir -m 1777 dev/shm
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
ln -s /proc/self/fd dev/fd
hostname "$3"
rm -f etc/resolv.conf
printf '%s' "$4" > etc/resolv.conf
exec chroot . /bin/sh -c "echo $pid; exec cat"
"""

# Run in the machine, with the packages as arguments and the answers to their questions on standard input. A policy of
# 101 keeps every service from starting. A mail server that is installed outside goes first: its settings are somebody's
# own, not the stock ones. Package lists are fetched only when there are none or they are too old.
_INSTALL = """
set -e
export DEBIAN_FRONTEND=noninteractive
printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
dpkg-query --show --showformat='${Package}\\n' postfix exim4-base exim4-config sendmail-base opensmtpd 2> /dev/null |
    xargs --no-run-if-empty apt-get purge --yes
hostname > /etc/mailname
debconf-set-selections
getent passwd alice || useradd --create-home alice
install() { apt-get install --yes --no-install-recommends "$@"; }
install "$@" || { apt-get update; install "$@"; }
apt-get clean
rm -rf /var/lib/apt/lists/* /var/log/apt
"""


class Machine:
    """A running machine, by the process id of its process 1 as seen from here."""

    def __init__(self, pid: int) -> None:
        self._prefix = ("nsenter", f"--target={pid}", "--mount", "--uts", "--pid", "--net")
        #: What to put before a command to run it in this machine.
        self.prefix = (*self._prefix, "--root", "--wd", "--")
        #: Its root directory, as seen from here.
        self.root = Path(f"/proc/{pid}/root")

    def run(self, *command: str, stdin: str = "", check: bool = True, patience: float = _PATIENCE) -> str:
        """Run a command to its end and return what it printed, standard error included."""
        done = subprocess.run(
            [*self.prefix, *command],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=patience,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}: {done.stdout}")
        return done.stdout

    def read(self, path: str) -> str:
        """Return the contents of a file, nothing if there is none yet."""
        return self.run("sh", "-c", 'if [ -f "$0" ]; then cat "$0"; fi', path)

    def save_layer(self, directory: str, archive: Path) -> None:
        """Pack what was written in a machine that was booted on ``directory``."""
        tar = ("tar", "--create", f"--directory={directory}/upper", "--numeric-owner", "--xattrs", "--one-file-system")
        subprocess.run([*self._prefix, "--", *tar, f"--file={archive}", "."], check=True, timeout=_BUILD_PATIENCE)


@contextlib.contextmanager
def boot(network: Network, layer: Path | None) -> Iterator[Machine]:
    """Boot a machine in a network with this layer, and switch it off at the end."""
    with _boot(network.prefix, layer, "nameserver 127.0.0.1\n") as (machine, _):
        yield machine


@contextlib.contextmanager
def _boot(prefix: Sequence[str], layer: Path | None, resolv_conf: str) -> Iterator[tuple[Machine, str]]:
    unshare = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "sh", "-c", _BOOT, "sh")
    with tempfile.TemporaryDirectory(prefix="nullsmtpd-machine-") as directory:
        arguments = (directory, str(layer or ""), SENDING, resolv_conf)
        with child((*prefix, *unshare, *arguments)) as pid:
            yield Machine(int(pid)), directory


def build_layer(name: str, packages: Sequence[str], selections: str = "") -> Path:
    """Return the archive of a layer with these packages installed; ``selections`` are answers for debconf.

    It is built once for every state of this machine's own packages: a layer fits only what it was put upon.
    """
    recipe = "\0".join((_BOOT, _INSTALL, SENDING, *packages, selections)).encode()
    state = Path("/var/lib/dpkg/status").read_bytes()
    key = hashlib.sha256(recipe + state).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nullsmtpd-tests"
    archive = cache / f"{name}-{key}.tar"
    with _building[name]:
        if not archive.exists():
            cache.mkdir(parents=True, exist_ok=True)
            outdated = list(cache.glob(f"{name}-*.tar"))
            with tempfile.TemporaryDirectory(dir=cache) as directory:
                new = Path(directory) / "layer.tar"
                _install(new, packages, selections)
                new.replace(archive)
            for path in outdated:
                path.unlink(missing_ok=True)
    return archive


def _install(archive: Path, packages: Sequence[str], selections: str) -> None:
    with _boot((), None, Path("/etc/resolv.conf").read_text()) as (machine, directory):
        machine.run("sh", "-c", _INSTALL, "sh", *packages, stdin=selections, patience=_BUILD_PATIENCE)
        machine.save_layer(directory, archive)
