"""One round: a fixed number of connections to one server, and what each of them cost it."""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

from bench import process
from bench.client import Plan
from bench.load import Generators
from bench.outcomes import ANSWERED
from bench.servers import Server
from bench.spread import Spread, spread

__all__ = ["Round", "interleave", "measure", "spread_of", "unanswered", "user_share", "warm_up"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Round:
    """What one round showed. Times in microseconds, memory in KiB, ``ns`` fields for the whole round."""

    started: int
    answered: int
    cpu_us: float  # per connection
    user_ns: int
    system_ns: int
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


def measure(server: Server, group: Generators, plan: Plan) -> Round:
    """Run the plan against the server. Raises KeyboardInterrupt if Ctrl-C ends it early."""
    before = process.usage(server.pids)
    tally, interrupted = group.run(plan._replace(targets=server.targets, quits=server.arm.wants_quit))
    if interrupted:
        raise KeyboardInterrupt
    server.settle()
    used = process.usage(server.pids).since(before)
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


def interleave(arms: Sequence[_T], rounds: int, seed: int, each: Callable[[int, _T], object]) -> bool:
    """Call ``each(round, arm)`` for every arm in every round, in a new random order; return whether Ctrl-C ended it.

    The order is random because the arm that is measured after another one inherits its caches and its TIME_WAITs.
    """
    order = list(arms)
    shuffle = random.Random(seed).shuffle
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
    return interleave(running, 1, 0, lambda _, server: measure(server, group, short))


def user_share(rounds: Sequence[Round]) -> float | None:
    """Return the share of user time, over all rounds together: a single one is no longer than a few ticks."""
    ticks = sum(one.user_ns + one.system_ns for one in rounds)
    return sum(one.user_ns for one in rounds) / ticks if ticks else None


def spread_of(rounds: Sequence[Round], name: str) -> Spread | None:
    """Return the spread of one field over the rounds that have it."""
    return spread([value for one in rounds if (value := getattr(one, name)) is not None])


def unanswered(rounds: Sequence[Round]) -> int:
    """Return how many connections got no whole line, over all rounds."""
    return sum(one.started - one.answered for one in rounds)
