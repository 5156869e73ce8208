"""What is remembered for a while: a bounded number of entries, the one that was not asked for longest goes first."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Cache"]

_V = TypeVar("_V")


class Cache(Generic[_V]):
    """Values by name, each for a number of seconds of ``clock``; at most ``limit`` of them, whatever is asked for."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        """Remember nothing yet."""
        self._limit = limit
        self._clock = clock
        self._entries: OrderedDict[str, tuple[float, _V]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many are kept, those included whose time is up but that nobody has asked for since."""
        return len(self._entries)

    def get(self, name: str) -> _V | None:
        """Return the value, or None when there is none or its time is up."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        until, value = entry
        if until <= self._clock():
            del self._entries[name]
            return None
        self._entries.move_to_end(name)
        return value

    def put(self, name: str, value: _V, seconds: float) -> None:
        """Remember ``value`` for ``seconds``, in place of any other for this name."""
        self._entries[name] = (self._clock() + seconds, value)
        self._entries.move_to_end(name)
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)
