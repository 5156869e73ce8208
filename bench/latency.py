"""Distributions of durations: recorded after a run, merged between processes, read as percentiles."""

from collections import Counter
from collections.abc import Iterable

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

__all__ = ["PERCENTILES", "Latencies"]

PERCENTILES = (50.0, 90.0, 99.0, 99.9)

# 64 ns is less than the generator can tell apart; 10 minutes is more than any time limit here; 3 digits keep every
# percentile within 0.1 %.
_LOWEST_SHIFT = 6
_HIGHEST = 600 * 10**9
_DIGITS = 3


class Latencies:
    """Durations in nanoseconds. ``maximum`` is exact, percentiles are within 0.1 %."""

    def __init__(self, durations: Iterable[int] = ()) -> None:
        """Record ``durations``, negative ones as 0 (two clock readings in one turn may be equal, never reversed)."""
        self._histogram = HdrHistogram(1 << _LOWEST_SHIFT, _HIGHEST, _DIGITS)
        self.maximum = 0
        kept = [min(max(duration, 0), _HIGHEST) for duration in durations]
        if kept:
            self.maximum = max(kept)
            for value, count in Counter(duration >> _LOWEST_SHIFT for duration in kept).items():
                self._histogram.record_value(value << _LOWEST_SHIFT, count)

    def __getstate__(self) -> tuple[bytes, int]:
        return self._histogram.encode(), self.maximum

    def __setstate__(self, state: tuple[bytes, int]) -> None:
        self._histogram = HdrHistogram.decode(state[0])
        self.maximum = state[1]

    @property
    def count(self) -> int:
        """Return how many durations were recorded."""
        return int(self._histogram.get_total_count())

    def add(self, other: "Latencies") -> None:
        """Record everything that ``other`` has too."""
        self._histogram.add(other._histogram)  # noqa: SLF001 - its own class
        self.maximum = max(self.maximum, other.maximum)

    def percentile(self, percent: float) -> float | None:
        """Return the duration in microseconds that ``percent`` of all stay within, or None without any."""
        if not self.count:
            return None
        return min(int(self._histogram.get_value_at_percentile(percent)), self.maximum) / 1000

    def summary(self) -> dict[str, float | int | None]:
        """Return count, percentiles and maximum, in microseconds, under the names that reports use."""
        named: dict[str, float | int | None] = {"count": self.count}
        named |= {f"p{percent:g}": self.percentile(percent) for percent in PERCENTILES}
        named["max"] = self.maximum / 1000 if self.count else None
        return named
