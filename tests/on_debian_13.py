"""Run the tests that need neither root nor other programs as an ordinary user of Debian 13, with its own Python.

    python tests/on_debian_13.py [PYTEST ARGUMENTS]

The checkout, as a clone has it, is copied into a chroot (see `debian`); pytest's output and exit status are passed on.
"""

import subprocess
import sys

from booted import copy_source
from debian import OWN_NETWORK, chroot

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
        copy_source(debian.root / "srv/source")
        debian.shell(_PREPARE)
        debian.shell(_INSTALL, user="tester", patience=600)
        selection = arguments or ["tests", *(f"--ignore=tests/{name}" for name in LEFT_OUT)]
        pytest = 'cd /home/tester/nullsmtpd && HYPOTHESIS_PROFILE=quick .venv/bin/pytest -q "$@"'
        return subprocess.run(
            debian.command("sh", "-c", pytest, "sh", *selection, user="tester"), check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
