"""Child processes: one that runs until the end of a block, and not longer than this process; one run to its end."""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from typing import IO

__all__ = ["UNTIL_WE_END", "child", "output"]

#: Prefix of a command that must not survive this process, even if this process is killed (setpriv(1), util-linux).
UNTIL_WE_END = ("setpriv", "--pdeathsig", "KILL")


@contextlib.contextmanager
def child(command: Sequence[str], log: IO[bytes] | None = None) -> Iterator[str]:
    """Start a command and kill it at the end; yield the line that it prints when it is ready.

    Its standard input is a pipe from here, its errors go to ``log``.
    """
    with subprocess.Popen(
        [*UNTIL_WE_END, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
    ) as popen:
        try:
            assert popen.stdout
            line = popen.stdout.readline().strip()
            if not line:
                raise RuntimeError(f"{command[0]} ended with {popen.wait()}")
            yield line
        finally:
            popen.kill()


def output(command: Sequence[str], what: str, *, stdin: str = "", check: bool = True, patience: float) -> str:
    """Run a command to its end and return what it printed, standard error included.

    ``patience``: seconds. Raises `RuntimeError` with ``what`` and that text where it fails, unless ``check`` is off.
    """
    done = subprocess.run(
        command,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=patience,
        check=False,
    )
    if check and done.returncode:
        raise RuntimeError(f"{what}: {command} ended with {done.returncode}: {done.stdout}")
    return done.stdout
