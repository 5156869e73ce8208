"""A child process that lives as long as a block."""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from typing import IO

__all__ = ["Child", "child"]


class Child:
    """A running child; ``said`` is the first line that it printed, if it was asked for one."""

    def __init__(self, popen: subprocess.Popen[str], said: str) -> None:
        self.pid = popen.pid
        self.said = said
        self._popen = popen

    def has_ended(self) -> bool:
        """Tell whether it is no longer running."""
        return self._popen.poll() is not None


@contextlib.contextmanager
def child(command: Sequence[str], *, speaks: bool, log: IO[bytes] | None = None) -> Iterator[Child]:
    """Start a command and kill it at the end; one that ``speaks`` is ready when it has printed a line.

    Its standard input is a pipe from here, so a command that lives as long as that cannot outlive this process. Its
    errors go to ``log``.
    """
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE if speaks else log, stderr=log, text=True
    ) as popen:
        try:
            said = popen.stdout.readline().strip() if popen.stdout else ""
            if speaks and not said:
                raise RuntimeError(f"not ready: {' '.join(command)}")
            yield Child(popen, said)
        finally:
            popen.kill()
