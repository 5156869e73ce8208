"""Run the tests that need neither root nor other programs as an ordinary user of Debian 13, with its own Python.

    python tests/on_debian_13.py [PYTEST ARGUMENTS]

The checkout's tracked files are copied into a chroot (see `debian`), and pytest's output and exit status are passed on.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from debian import OWN_NETWORK, chroot

ROOT = Path(__file__).parents[1]

#: Tests that need root, namespaces, or programs that are not installed there, by their directories and files; and the
#: clients by the thousand, which do not depend on the interpreter.
LEFT_OUT = (
    "bench",
    "deploy",
    "docs",
    "interop",
    "unit/deploy",
    "responder/test_clients.py",
    "runtime/test_event_loop.py",
)

_PREPARE = """
useradd --create-home tester
cp -r /srv/source /home/tester/nullsmtpd
chown -R tester: /home/tester
"""
_INSTALL = """
cd /home/tester/nullsmtpd
python3 -m venv .venv
.venv/bin/pip install -q -U pip
.venv/bin/pip install -q -e '.[relay]' --group test
"""


def main(arguments: list[str]) -> int:
    """Run pytest with the arguments, or else with all tests that can run there; return its exit status."""
    with chroot("trixie", ["python3-venv", "procps", "iproute2", "strace"], network=OWN_NETWORK) as debian:
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, files.split("\0")):
            target = debian.root / "srv/source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target, follow_symlinks=False)
        debian.run("sh", "-e", "-c", _PREPARE)
        debian.run("sh", "-e", "-c", _INSTALL, user="tester", patience=600)
        selection = arguments or ["tests", *(f"--ignore=tests/{name}" for name in LEFT_OUT)]
        pytest = 'cd /home/tester/nullsmtpd && HYPOTHESIS_PROFILE=quick .venv/bin/pytest -q "$@"'
        return subprocess.run(
            debian.command("sh", "-c", pytest, "sh", *selection, user="tester"), check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
