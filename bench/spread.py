"""What a series of noisy measurements says: median and interquartile range, and ratios taken pair by pair."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Spread", "ratios", "spread"]


class Spread(NamedTuple):
    """A median with the quartiles around it and the number of values behind it."""

    median: float
    low: float
    high: float
    values: int


def spread(values: Sequence[float]) -> Spread | None:
    """Return median and quartiles, or None without values."""
    if not values:
        return None
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high, len(values))


def ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return value / base of each round; both series are in the order of the rounds. A round without base is left out.

    The noise of a shared machine comes in stretches, so the two sides of a ratio must have been measured together.
    """
    return [value / other for value, other in zip(values, base, strict=True) if other > 0]
