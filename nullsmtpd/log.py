"""Log lines: ``2026-11-23T20:00:00.000Z event key=value …`` on stderr, whatever state stderr is in."""

import os
import select
import time

__all__ = ["log"]

_STDERR = 2
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:,+-_/@%[]*")


def log(event: str, **values: object) -> None:
    """Write one line; never raise and never wait.

    A value with anything but plain characters is quoted and escaped, so one event is always one line. When stderr is
    closed, or is a pipe that nobody empties, the line is lost and the daemon goes on.
    """
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    fields = "".join(f" {key}={_quoted(str(value))}" for key, value in values.items())
    line = f"{stamp}.{int(now % 1 * 1000):03d}Z {event}{fields}\n".encode("ascii")
    writable = select.poll()
    writable.register(_STDERR, select.POLLOUT)
    try:
        # POLLOUT on a pipe promises room for PIPE_BUF (4096) octets, pipe(7), so a line cut to that cannot block.
        if writable.poll(0):
            os.write(_STDERR, line[: select.PIPE_BUF])
    except OSError:
        pass


def _quoted(value: str) -> str:
    if value and _PLAIN.issuperset(value):
        return value
    # Not the codec "unicode_escape": Python would load it now, and there may be no descriptor left to load it with.
    escaped = ascii(value)[1:-1].replace('"', '\\"')
    return f'"{escaped}"'
