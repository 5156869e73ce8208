"""What is counted: numbers an operator asks for, at the price of an addition each. Octets are never counted.

The numbers stand in one block of memory. A server of several processes shares it, so that a sum over them needs no
message, and loses nothing of a process that has died.
"""

import errno
from collections.abc import Iterable
from typing import overload

__all__ = ["Counters"]

#: Errnos from 1 on have a cell each; Linux ends at 133. What lies beyond is counted as 0, which is no errno.
_ERRNOS = 160


class _Cell:
    """One number of the block, as an attribute: the next free cell, in the order of the definitions."""

    used = 0

    def __init__(self) -> None:
        self._index = _Cell.used
        _Cell.used += 1

    @overload
    def __get__(self, counters: None, owner: type) -> "_Cell": ...
    @overload
    def __get__(self, counters: "Counters", owner: type) -> int: ...
    def __get__(self, counters: "Counters | None", owner: type) -> "_Cell | int":
        return self if counters is None else counters.cells[self._index]

    def __set__(self, counters: "Counters", value: int) -> None:
        counters.cells[self._index] = value


class Counters:
    """Totals since the process started, and levels: how many there are now.

    ``memory``: `SIZE` octets of zeros to count in, shared or not; memory of its own without one.
    """

    __slots__ = ("cells",)

    #: Connections accepted.
    connections = _Cell()
    #: Lingering sockets closed early to make room for newer ones.
    cut_short = _Cell()
    #: Clients that were still sending when their linger was up, and whose input was then discarded.
    drained = _Cell()
    #: Dialogues begun (modes session and mail).
    sessions = _Cell()
    #: Clients that were gone before the line could be sent.
    send_errors = _Cell()
    #: Lines that the access log left out because there were too many.
    access_left_out = _Cell()
    #: Workers that had to be replaced.
    worker_restarts = _Cell()
    #: How often a worker's loop has shown that it turns, for a watchdog.
    heartbeats = _Cell()

    #: Level: answered clients that have not closed yet.
    lingering = _Cell()
    #: Level: clients whose input is being discarded.
    draining = _Cell()
    #: Level: clients in a dialogue.
    talking = _Cell()
    #: Level: descriptors open for anything but a client.
    descriptors = _Cell()
    #: Level: processes that answer.
    workers = _Cell()
    #: Not a number to add up: the id of the process that counts here; 0 once it has ended.
    process = _Cell()

    _first_errno = _Cell.used
    SIZE = 8 * (_first_errno + _ERRNOS)

    def __init__(self, memory: memoryview | None = None) -> None:
        self.cells = (memory or memoryview(bytearray(self.SIZE))).cast("Q")

    @classmethod
    def total(cls, several: Iterable["Counters"]) -> "Counters":
        """Return the sums of the counters of several processes."""
        total = cls()
        for index, column in enumerate(zip(*(counters.cells for counters in several), strict=True)):
            total.cells[index] = sum(column)
        total.process = 0
        return total

    @property
    def accept_errors(self) -> dict[int, int]:
        """Failed accepts by errno."""
        return {number: count for number, count in enumerate(self.cells[self._first_errno :]) if count}

    def count_accept_error(self, number: int | None) -> None:
        """Count one failed accept with this errno."""
        known = number if number is not None and 0 < number < _ERRNOS else 0
        self.cells[self._first_errno + known] += 1

    def forget_levels(self) -> None:
        """Put the levels to nothing: the process that they were of has ended."""
        self.lingering = self.draining = self.talking = self.descriptors = self.workers = self.process = 0

    def fields(self) -> dict[str, int | str]:
        """Return the ``stats`` line's fields: levels, then totals; accept errors as ``EMFILE:3,ENFILE:1``, or 0."""
        by_errno = ",".join(f"{errno.errorcode.get(n, n)}:{count}" for n, count in sorted(self.accept_errors.items()))
        return {
            "lingering": self.lingering,
            "draining": self.draining,
            "talking": self.talking,
            "connections": self.connections,
            "cut_short": self.cut_short,
            "drained": self.drained,
            "sessions": self.sessions,
            "send_errors": self.send_errors,
            "accept_errors": by_errno or 0,
            "access_left_out": self.access_left_out,
            "worker_restarts": self.worker_restarts,
        }
