"""Medians, quartiles and percentiles of noisy measurements."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """A median with the quartiles around it and the number of values behind it."""

    median: float
    low: float
    high: float
    values: int


def spread(values: Sequence[float]) -> Spread | None:
    """Return median and quartiles, or None without values."""
    if len(values) < 2:  # noqa: PLR2004 - quantiles() takes two
        return Spread(values[0], values[0], values[0], 1) if values else None
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high, len(values))


def ratio(values: Sequence[float], base: Sequence[float]) -> Spread | None:
    """Return value / base, taken round by round as far as both go.

    The noise of a shared machine comes in stretches, so the two sides of a ratio must have been measured together.
    """
    return spread([value / other for value, other in zip(values, base, strict=False) if other > 0])


def percentiles(seconds: Sequence[float], *percents: float) -> list[float | None]:
    """Return, in milliseconds, the smallest values that ``percents`` of them do not exceed; None without values."""
    if not seconds:
        return [None] * len(percents)
    ordered = sorted(seconds)
    return [ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] * 1000 for percent in percents]
