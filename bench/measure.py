"""The figures of noisy measurements: interleaved rounds, medians with quartiles, percentiles, and how to write them."""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from bench import report
from bench.report import Report

_T = TypeVar("_T")
_Result = TypeVar("_Result")

# Of the random order: the same in every run.
_SEED = 521

#: What closing a connection costs belongs to it: nullsmtpd closes the last ones in a sweep, at most 0.5 s later.
SETTLE_SECONDS = 0.6


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


def number(value: float | None, most: int = 9) -> str:
    """Write a number with three significant digits, but at most ``most`` after the point; a dash for None."""
    if value is None:
        return "-"
    digits = 2 - int(f"{value:.2e}".partition("e")[2]) if value > 0 else 0  # of the rounded value: 9.996 is 10.0
    return f"{value:,.{min(max(digits, 0), most)}f}"


def with_spread(value: Spread | None, most: int = 9) -> str:
    """Write a median with its quartiles, each as `number` does: ``31.4 (30.9-32.0)``."""
    if value is None:
        return "-"
    return f"{number(value.median, most)} ({number(value.low, most)}-{number(value.high, most)})"


class Round(NamedTuple):
    """What one measurement showed."""

    cpu_us: float  # user and system time of the server per connection
    p50_ms: float | None
    p99_ms: float | None
    per_second: float
    generator_cpu: float  # share of a CPU
    late_ms: float  # open loop: 1 % of the connections started this late or later
    started: int
    lost: int


def interleave(
    groups: Sequence[Sequence[_T]], rounds: int, each: Callable[[_T], _Result]
) -> tuple[dict[_T, list[_Result]], bool]:
    """Call ``each`` for every member of every group in every round; return its results, and whether Ctrl-C ended it.

    The members of a group take turns in a new random order, because one that is measured after another inherits its
    caches and its TIME_WAITs, and before the next group, so that a ratio compares what was measured within seconds.
    Raises KeyboardInterrupt if Ctrl-C comes before the first result.
    """
    order = random.Random(_SEED)
    steps = (one for _ in range(rounds) for members in groups for one in order.sample(members, len(members)))
    results: dict[_T, list[_Result]] = {member: [] for members in groups for member in members}
    total, begun, interrupted = rounds * len(results), time.monotonic(), False
    try:
        for done, member in enumerate(steps):
            left = f", {(time.monotonic() - begun) / done * (total - done):,.0f} s left" if done else ""
            report.progress(f"{done} of {total} measured{left}")
            results[member].append(each(member))
    except KeyboardInterrupt:
        if not any(results.values()):
            raise
        interrupted = True
    return {member: found for member, found in results.items() if found}, interrupted


def costs(keys: Sequence[str], rounds: Mapping[tuple[str, ...], Sequence[Round]], base: str) -> Report:
    """Return a report of what servers cost: a table with the columns ``keys``, and the same for JSON, unrounded.

    ``rounds`` is by the values of the keys, the server the last of them; ratios are to the server ``base``. Costs and
    ratios are medians with quartiles, times are medians.
    """
    cpu_us = {labels: [one.cpu_us for one in series] for labels, series in rounds.items()}
    rows, results = [], []
    for labels, series in rounds.items():
        *columns, started, lost = zip(*series, strict=True)
        found = {
            name: spread([value for value in column if value is not None])
            for name, column in zip(Round._fields, columns, strict=False)
        }
        found["ratio"] = ratio(cpu_us[labels], cpu_us.get((*labels[:-1], base), ()))
        figures = [with_spread(found["cpu_us"]), with_spread(found["ratio"], 2)]
        figures += [number(one.median if one else None) for one in (found["p50_ms"], found["p99_ms"])]
        rows.append([*labels, *figures, f"{sum(lost):,}"])
        results.append({**dict(zip(keys, labels, strict=True)), **found, "started": sum(started), "lost": sum(lost)})
    head = [*keys, "CPU µs", "ratio", "p50 ms", "p99 ms", "lost"]
    return Report(head, rows, [], {"results": results}, left=len(keys))
