"""Images and containers, by podman: built with or without a mirror, run with the README's options.

As a command it prints the options with which ``podman build`` uses this machine's mirrors, whose files it puts into the
directory given:

    podman build $(python tests/containers.py DIRECTORY) --format=docker --network=host -t nullsmtpd .
"""

import contextlib
import itertools
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from activation import hand_over
from debian import apt_settings, apt_sources
from support import Daemon, require

__all__ = ["HARDENED", "build_image", "build_options", "default_suite", "mirror_options", "podman", "running_container"]

ROOT = Path(__file__).parent.parent

# What .ci/run does too: podman's configuration for machines where its own does not do.
_CONFIGURATION = Path(os.environ.get("CONTAINER_TOOLS", ROOT.parent / "shared/container"), "containers.conf")
if _CONFIGURATION.exists():
    os.environ.setdefault("CONTAINERS_CONF", str(_CONFIGURATION))

#: The README's restrictions, and no place to write to. The user is the image's.
HARDENED = (
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--memory=64m",
    "--pids-limit=16",
)

_numbers = itertools.count()


def podman(*arguments: str, prefix: Sequence[str] = ()) -> str:
    """Run podman; return what it printed. A failure fails the test with what podman said."""
    done = subprocess.run([*prefix, "podman", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"podman {' '.join(arguments)}: {done.stderr}"
    return done.stdout.strip()


def build_image(tag: str, secrets: Path, *arguments: str, file: str = "Dockerfile") -> str:
    """Build an image from the repository; return its name. ``secrets`` is an empty directory for `mirror_options`."""
    name = f"localhost/nullsmtpd-test:{tag}"
    podman("build", *build_options(secrets), f"--tag={name}", f"--file={ROOT / file}", *arguments, str(ROOT))
    return name


def build_options(secrets: Path) -> list[str]:
    """Return the options of ``podman build`` on this machine, and require the base image. ``secrets``: as above."""
    suite = default_suite()
    base = f"docker.io/library/debian:{suite}-slim"
    if subprocess.run(["podman", "image", "exists", base], check=False).returncode:
        pulled = subprocess.run(["podman", "pull", "--quiet", base], capture_output=True, check=False)
        require(pulled.returncode == 0, f"the image {base}")
    return ["--format=docker", "--network=host", *mirror_options(secrets, suite)]


def default_suite() -> str:
    """Return the Debian release that the Dockerfile uses."""
    suites: list[str] = re.findall(r"^ARG DEBIAN=(\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return suites[0]


def mirror_options(directory: Path, suite: str) -> Iterator[str]:
    """Yield the build secrets, written to ``directory``, with which a build uses this machine's mirrors."""
    if sources := apt_sources(suite):
        yield _secret(directory / "apt", sources)
        yield _secret(directory / "apt-conf", apt_settings())
    bundle = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    if bundle:
        yield _secret(directory / "ca", Path(bundle).read_text())
        yield _secret(directory / "pip", "[global]\ncert = /run/secrets/ca\n")


def _secret(path: Path, text: str) -> str:
    path.write_text(text)
    return f"--secret=id={path.name},src={path}"


@contextlib.contextmanager
def running_container(
    image: str,
    log_path: Path,
    *arguments: str,
    options: Sequence[str] = (),
    prefix: Sequence[str] = (),
    passed: Sequence[socket.socket] = (),
) -> Iterator[tuple[Daemon, str]]:
    """Run a container until the end of the block; give what stands for its process, and its name.

    ``options`` are podman's, after `HARDENED`; ``prefix`` goes before its command; ``passed`` are handed over as a
    service manager does. Signals to the process are passed on to the container, whose log and exit status are its own.
    """
    name = f"nullsmtpd-test-{os.getpid()}-{next(_numbers)}"
    command = ["podman", "run", f"--name={name}", *HARDENED, *options, image, *arguments]
    if passed:
        command = hand_over(passed, *command)
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [*prefix, *command], stdout=log, stderr=log, pass_fds=[one.fileno() for one in passed]
        )
    try:
        yield Daemon(process, log_path), name
    finally:
        podman("rm", "--force", "--ignore", "--time=0", name, prefix=prefix)
        process.wait()


if __name__ == "__main__":
    print(*mirror_options(Path(sys.argv[1]), default_suite()))  # noqa: T201 - its only output
