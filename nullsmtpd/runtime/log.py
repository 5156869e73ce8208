"""Log lines: ``2026-11-23T20:00:00.000Z event key=value …`` on stderr, whatever state stderr is in."""

import os
import select
import time
from collections.abc import Iterable, Iterator, Mapping

__all__ = ["log", "log_each"]

_STDERR = 2
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:,+-_/@%[]*")


def log(event: str, **values: object) -> None:
    """Write one line; never raise and never wait.

    A value with anything but plain characters is quoted and escaped, so one event is always one line. When stderr is
    closed, or is a pipe that nobody empties, the line is lost and the daemon goes on.
    """
    log_each(event, [values])


def log_each(event: str, entries: Iterable[Mapping[str, object]]) -> int:
    """Write a line of the same event for each entry, many with one write; return how many were not lost."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    start = f"{stamp}.{int(now % 1 * 1000):03d}Z {event}"
    return sum(len(lines) for lines in _in_blocks(_line(start, values) for values in entries) if _write(lines))


def _line(start: str, values: Mapping[str, object]) -> bytes:
    fields = "".join(f" {key}={_quoted(str(value))}" for key, value in values.items())
    return f"{start}{fields}".encode("ascii")[: select.PIPE_BUF - 1] + b"\n"


def _in_blocks(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Part the lines into groups of PIPE_BUF octets at most: POLLOUT on a pipe promises room for those, pipe(7)."""
    block: list[bytes] = []
    octets = 0
    for line in lines:
        if octets + len(line) > select.PIPE_BUF:
            yield block
            block, octets = [], 0
        block.append(line)
        octets += len(line)
    if block:
        yield block


def _write(lines: list[bytes]) -> bool:
    """Write the lines, PIPE_BUF octets at most, if there is room for them at once; tell whether there was."""
    octets = b"".join(lines)
    writable = select.poll()
    writable.register(_STDERR, select.POLLOUT)
    try:
        return bool(writable.poll(0)) and os.write(_STDERR, octets) == len(octets)
    except OSError:
        return False


def _quoted(value: str) -> str:
    if value and _PLAIN.issuperset(value):
        return value
    # Not the codec "unicode_escape": Python would load it now, and there may be no descriptor left to load it with.
    escaped = ascii(value)[1:-1].replace('"', '\\"')
    return f'"{escaped}"'
