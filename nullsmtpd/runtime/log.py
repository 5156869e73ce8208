"""Log lines on stderr: ``2026-11-23T20:00:00.000Z event key=value …``."""

import contextlib
import os
import select
import time
from collections.abc import Callable

__all__ = ["LOG_INTERVAL", "RateLimitedLog", "log"]

#: Seconds until the same event of a `RateLimitedLog` is logged again.
LOG_INTERVAL = 60.0

_STDERR = 2
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:,+-_/@%[]*")

_line_is_torn = False  # the last write was short: the next line starts on a line of its own


def log(event: str, **values: object) -> bool:
    """Write one line; return whether all of it was written. Never blocks and never raises.

    A value with anything except plain characters is quoted and escaped, so one event is always one line. When stderr
    is closed, is a full disk or a pipe that nobody reads, the line is lost and the daemon continues.
    """
    global _line_is_torn  # noqa: PLW0603 - there is one stderr
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    fields = "".join(f" {key}={_quoted(str(value))}" for key, value in values.items())
    # pipe(7): a pipe that is ready has room for PIPE_BUF octets, and up to that many are written in one piece.
    line = f"{stamp}.{int(now % 1 * 1000):03d}Z {event}{fields}".encode("ascii")[: select.PIPE_BUF - 2] + b"\n"
    if _line_is_torn:
        line = b"\n" + line
    with contextlib.suppress(OSError):
        if select.select((), (_STDERR,), (), 0)[1]:
            _line_is_torn = os.write(_STDERR, line) < len(line)
            return not _line_is_torn
    return False


class RateLimitedLog:
    """Logs an event with the same ``key`` at most once in `LOG_INTERVAL`, by ``clock`` in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next: dict[tuple[str, object], float] = {}

    def __call__(self, event: str, key: object = None, **values: object) -> None:
        """Write one line as `log` does, or none."""
        now = self._clock()
        if now >= self._next.get((event, key), now):
            self._next[event, key] = now + LOG_INTERVAL
            log(event, **values)


def _quoted(value: str) -> str:
    if value and _PLAIN.issuperset(value):
        return value
    # Not the codec "unicode_escape": Python would load it now, for which there may be no file descriptor left.
    escaped = ascii(value)[1:-1].replace('"', '\\"')
    return f'"{escaped}"'
