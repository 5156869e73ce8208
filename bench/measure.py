"""What connections or lookups cost a server: interleaved rounds, and medians with their spread."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from bench import report
from bench.report import Report
from bench.stats import ratio, spread

_T = TypeVar("_T")
_Result = TypeVar("_Result")

# Of the random order: the same in every run.
_SEED = 521

#: What closing a connection costs belongs to it: nullsmtpd closes the last ones in a sweep, at most 0.5 s later.
SETTLE_SECONDS = 0.6


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
        figures = [report.with_spread(found["cpu_us"]), report.with_spread(found["ratio"], 2)]
        figures += [report.number(one.median if one else None) for one in (found["p50_ms"], found["p99_ms"])]
        rows.append([*labels, *figures, f"{sum(lost):,}"])
        results.append({**dict(zip(keys, labels, strict=True)), **found, "started": sum(started), "lost": sum(lost)})
    head = [*keys, "CPU µs", "ratio", "p50 ms", "p99 ms", "lost"]
    return Report(head, rows, [], {"results": results}, left=len(keys))
