"""What connections cost a server: one measurement, interleaved rounds of them, and medians with their spread."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from bench import report, system
from bench.client import Plan, run
from bench.servers import Server
from bench.stats import percentiles, ratio, spread

HEAD = ("CPU µs", "ratio", "p50 ms", "p99 ms", "lost")

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


def measure(server: Server, plan: Plan) -> Round:
    """Measure one run of the plan, targets and commands left out, against the server.

    Raises KeyboardInterrupt if Ctrl-C ends it early.
    """
    arm, before = server.arm, system.cpu_ns(server.pids)
    tally = run(plan._replace(targets=server.targets, commands=arm.commands, expect=arm.expect))
    if tally.interrupted:
        raise KeyboardInterrupt
    time.sleep(SETTLE_SECONDS)
    used = system.cpu_ns(server.pids) - before
    p50, p99 = percentiles(tally.fin, 50, 99)
    return Round(
        cpu_us=used / max(tally.started, 1) / 1000,
        p50_ms=p50,
        p99_ms=p99,
        per_second=tally.in_window / (tally.window / 1e9),
        generator_cpu=tally.cpu_share,
        late_ms=tally.late_ms,
        started=tally.started,
        lost=tally.lost,
    )


def interleave(
    groups: Sequence[Sequence[_T]], rounds: int, each: Callable[[_T], _Result], what: str = "round"
) -> tuple[dict[_T, list[_Result]], bool]:
    """Call ``each`` for every member of every group in every round; return its results, and whether Ctrl-C ended it.

    The members of a group take turns in a new random order, because one that is measured after another inherits its
    caches and its TIME_WAITs, and before the next group, so that a ratio compares what was measured within seconds.
    Raises KeyboardInterrupt if Ctrl-C comes before the first result.
    """
    shuffle = random.Random(_SEED).shuffle
    results: dict[_T, list[_Result]] = {member: [] for members in groups for member in members}
    steps, done, begun, interrupted = rounds * sum(map(len, groups)), 0, time.monotonic(), False
    try:
        for number in range(rounds):
            for members in map(list, groups):
                shuffle(members)
                for member in members:
                    left = f", {(time.monotonic() - begun) / done * (steps - done):,.0f} s left" if done else ""
                    report.progress(f"{what} {number + 1} of {rounds}, {done} of {steps} measured{left}")
                    results[member].append(each(member))
                    done += 1
    except KeyboardInterrupt:
        if not done:
            raise
        interrupted = True
    return {member: found for member, found in results.items() if found}, interrupted


def tabulate(
    keys: Sequence[str], rounds: Mapping[tuple[str, ...], Sequence[Round]], base: str
) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """Return the rows of a table with the columns ``keys`` and `HEAD`, and the same for JSON, unrounded.

    ``rounds`` is by the values of the keys, the server the last of them; ratios are to the server ``base``. Costs and
    ratios are medians with quartiles, times are medians.
    """
    cpu_us = {labels: [one.cpu_us for one in series] for labels, series in rounds.items()}
    rows, records = [], []
    for labels, series in rounds.items():
        *columns, started, lost = zip(*series, strict=True)
        found = {
            name: spread([value for value in column if value is not None])
            for name, column in zip(Round._fields, columns, strict=False)
        }
        found["ratio"] = ratio(cpu_us[labels], cpu_us.get((*labels[:-1], base), ()))
        costs = report.with_spread(found["cpu_us"]), report.with_spread(found["ratio"], 2)
        times = [report.number(one.median if one else None) for one in (found["p50_ms"], found["p99_ms"])]
        rows.append([*labels, *costs, *times, f"{sum(lost):,}"])
        records.append({**dict(zip(keys, labels, strict=True)), **found, "started": sum(started), "lost": sum(lost)})
    return rows, records
