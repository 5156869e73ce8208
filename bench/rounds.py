"""One round: a fixed number of connections to one server, and what each of them cost it."""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

from bench import process
from bench.client import Plan, Tally
from bench.load import Generators
from bench.outcomes import ANSWERED
from bench.process import Usage
from bench.servers import Server
from bench.spread import Spread, ratios, spread

__all__ = [
    "SEED",
    "Costs",
    "Round",
    "cpu_ratio",
    "interleave",
    "measure",
    "median_of",
    "run",
    "spread_of",
    "unanswered",
    "user_share",
    "warm_up",
]

_T = TypeVar("_T")

#: Of the random order: the same in every run.
SEED = 521


@dataclass(frozen=True)
class Costs:
    """What every round shows: CPU in microseconds per connection, or whatever is measured; ``ns`` of all of it."""

    cpu_us: float
    user_ns: int
    system_ns: int


@dataclass(frozen=True)
class Round(Costs):
    """What one round showed. Times in microseconds, memory in KiB."""

    started: int
    answered: int
    switches: float  # per connection
    rate: float
    p50_us: float | None
    p99_us: float | None
    rss: int
    peak_rss: int
    pss: int
    generator_cpu: float

    def record(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return asdict(self)


def run(server: Server, group: Generators, plan: Plan) -> tuple[Tally, Usage]:
    """Run the plan, targets and commands left out, against the server; return what clients saw and what it used.

    Raises KeyboardInterrupt if Ctrl-C ends it early.
    """
    before = process.usage(server.pids)
    tally = _load(server, group, plan)
    server.settle()
    return tally, process.usage(server.pids).since(before)


def _load(server: Server, group: Generators, plan: Plan) -> Tally:
    arm = server.arm
    tally, interrupted = group.run(plan._replace(targets=server.targets, commands=arm.commands, expect=arm.expect))
    if interrupted:
        raise KeyboardInterrupt
    return tally


def measure(server: Server, group: Generators, plan: Plan) -> Round:
    """Return what `run` shows, per connection."""
    tally, used = run(server, group, plan)
    memory = process.memory(server.pids)
    return Round(
        started=tally.started,
        answered=sum(tally.outcomes[outcome] for outcome in ANSWERED),
        cpu_us=used.cpu_ns / tally.started / 1000,
        user_ns=used.user_ns,
        system_ns=used.system_ns,
        switches=(used.voluntary + used.involuntary) / tally.started,
        rate=tally.completed / (tally.window_ns / 1e9),
        p50_us=tally.fin.percentile(50),
        p99_us=tally.fin.percentile(99),
        rss=memory.rss,
        peak_rss=memory.peak_rss,
        pss=memory.pss,
        generator_cpu=tally.cpu_share,
    )


def interleave(arms: Sequence[_T], rounds: int, each: Callable[[int, _T], object]) -> bool:
    """Call ``each(round, arm)`` for every arm in every round, in a new random order; return whether Ctrl-C ended it.

    The order is random because the arm that is measured after another one inherits its caches and its TIME_WAITs.
    """
    order = list(arms)
    shuffle = random.Random(SEED).shuffle
    try:
        for number in range(rounds):
            shuffle(order)
            for arm in order:
                each(number, arm)
    except KeyboardInterrupt:
        return True
    return False


def warm_up(running: Sequence[Server], group: Generators, plan: Plan) -> bool:
    """Run a tenth of the plan against each server, uncounted; return whether Ctrl-C ended it."""
    short = plan._replace(connections=max(plan.clients, plan.connections // 10))
    interrupted = interleave(running, 1, lambda _, server: _load(server, group, short))
    return interrupted or interleave(running, 1, lambda _, server: server.settle())


def user_share(rounds: Sequence[Costs]) -> float | None:
    """Return the share of user time, over all rounds together: a single one is no longer than a few ticks."""
    ticks = sum(one.user_ns + one.system_ns for one in rounds)
    return sum(one.user_ns for one in rounds) / ticks if ticks else None


def spread_of(rounds: Sequence[Costs], name: str) -> Spread | None:
    """Return the spread of one field over the rounds that have it."""
    return spread([value for one in rounds if (value := getattr(one, name)) is not None])


def median_of(rounds: Sequence[Costs], name: str) -> float | None:
    """Return the median of one field over the rounds that have it."""
    found = spread_of(rounds, name)
    return found.median if found else None


def cpu_ratio(ours: Sequence[Costs], theirs: Sequence[Costs]) -> Spread | None:
    """Return CPU time per connection in relation to the other series, taken round by round as far as both go."""
    count = min(len(ours), len(theirs))
    return spread(ratios([one.cpu_us for one in ours[:count]], [one.cpu_us for one in theirs[:count]]))


def unanswered(rounds: Sequence[Round]) -> int:
    """Return how many connections got no whole line, over all rounds."""
    return sum(one.started - one.answered for one in rounds)
