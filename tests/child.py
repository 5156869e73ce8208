"""A child process that runs until the end of a block, and not longer than this process."""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from typing import IO

__all__ = ["UNTIL_WE_END", "child"]

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
