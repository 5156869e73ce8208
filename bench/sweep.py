"""How the cost of one connection grows: with the rate, with lingering sockets, with addresses, with workers."""

import contextlib
import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from bench import load, machine, process, report, rounds, servers
from bench.client import Plan
from bench.rounds import Round
from bench.spread import Spread

__all__ = ["ADDRESSES", "LINGERING", "WORKERS", "Growth", "Point", "Step", "find_knee", "grow", "knee_reason"]

#: How many clients connect and neither read nor close, while others are measured.
LINGERING = (0, 1, 64, 1024, 4096, 16384)

#: How many addresses to listen on; the clients use all of them in turn.
ADDRESSES = (1, 2, 4, 8)

#: How many processes answer, all of them on the CPU of the server: what is asked is what sharing the port costs.
WORKERS = (1, 2, 4)

#: The knee: less than this share of what was offered is completed, or p99 is beyond this multiple of its first value.
ENOUGH = 0.95
MUCH_SLOWER = 10.0

# As long as nullsmtpd allows: what lingers must do so until the last round.
_STAY = ("--max-lingering", "20000", "--linger", "3600")
# Descriptors that a server needs beside those that are held: those of one round's clients, and its own.
_ROOM = 2048


@dataclass(frozen=True)
class Step:
    """One rate, and what came of it. Times in microseconds."""

    offered: float
    started: float
    completed: float
    unanswered: int
    p50_us: float | None
    p99_us: float | None
    cpu_us: float  # of the server, per connection
    server_cpu: float  # share of its CPU
    generator_cpu: float
    reason: str | None  # why this is the knee

    def record(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return asdict(self)


class Point(NamedTuple):
    """One size of the work: clients that hold a connection, addresses to listen on, processes that answer."""

    held: int = 0
    addresses: int = 1
    workers: int = 1


class Growth(NamedTuple):
    """Rounds of every point, the points that could not be had and why, and whether Ctrl-C ended it early."""

    rounds: dict[Point, list[Round]]
    missing: dict[Point, str]
    interrupted: bool

    def ratio(self, point: Point) -> Spread | None:
        """Return CPU time per connection in relation to the first point, taken round by round."""
        return rounds.cpu_ratio(self.rounds[point], next(iter(self.rounds.values())))

    def record(self) -> list[dict[str, object]]:
        """Return the points as JSON has them."""
        found: list[dict[str, object]] = []
        for point, series in self.rounds.items():
            cpu, ratio = rounds.spread_of(series, "cpu_us"), self.ratio(point)
            found.append(
                point._asdict()
                | {"cpu_us": cpu._asdict() if cpu else None, "cpu_ratio": ratio._asdict() if ratio else None}
                | {"rounds": [one.record() for one in series]}
            )
        return found + [{**point._asdict(), "missing": why} for point, why in self.missing.items()]


def knee_reason(step: Step, first_p99: float | None, limits: Sequence[str]) -> str | None:
    """Return why a sweep is to end after this step, or None: the generator first, since then it says nothing else."""
    if limits:
        return "the generator was the limit: " + "; ".join(limits)
    if step.completed < ENOUGH * step.offered:
        return f"completed {step.completed / step.offered:.1%} of what was offered"
    if step.p99_us is None:
        return "nobody got the line"
    if first_p99 and step.p99_us > MUCH_SLOWER * first_p99:
        return f"p99 is {step.p99_us / first_p99:.1f} times its first value"
    return None


def find_knee(arm: servers.Arm, *, first: float, factor: float, seconds: float, most: int) -> tuple[list[Step], bool]:
    """Offer rates from ``first`` upward, each ``factor`` times the last, until the knee or ``most`` steps.

    Returns the steps, the last one with its reason if it is the knee, and whether Ctrl-C ended it early.
    """
    steps: list[Step] = []
    with (
        load.generators(load.default_processes(), machine.other_cpus()) as group,
        servers.running(arm, cpus=machine.server_cpus()) as server,
    ):
        rate = first
        try:
            while len(steps) < most and not (steps and steps[-1].reason):
                report.progress(f"{rate:,.0f} a second")
                steps.append(_step(server, group, rate, seconds, steps[0].p99_us if steps else None))
                rate *= factor
        except KeyboardInterrupt:
            return steps, True
        finally:
            report.progress_end()
    return steps, False


def grow(points: Sequence[Point], *, count: int, plan: Plan) -> Growth:
    """Measure what a connection costs at every point, in interleaved rounds of ``plan``, targets left out.

    Each point has a server of its own, and a process that holds its clients.
    """
    results: dict[Point, list[Round]] = {}
    missing: dict[Point, str] = {}
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(load.generators(load.default_processes(), machine.other_cpus()))
        up: list[tuple[Point, servers.Server]] = []
        for point in points:
            report.progress(f"starting with {point.held} held, {point.addresses} addresses, {point.workers} workers")
            if why := _too_much(point.held):
                missing[point] = why
                continue
            arm = servers.nullsmtpd(*_STAY, "--workers", str(point.workers))
            server = stack.enter_context(servers.running(arm, addresses=point.addresses, cpus=machine.server_cpus()))
            if point.held:
                holder = stack.enter_context(load.generators(1, machine.other_cpus()))
                held = holder.hold(server.targets[0], point.held)
                server.settle()
                if min(held, process.descriptors(server.pids)) < point.held:
                    missing[point] = f"only {held} connections could be held"
                    continue
            results[point] = []
            up.append((point, server))

        def one_round(number: int, where: tuple[Point, servers.Server]) -> None:
            report.progress(f"round {number + 1} of {count}: {where[0]}")
            results[where[0]].append(rounds.measure(where[1], group, plan))

        interrupted = rounds.warm_up([server for _, server in up], group, plan)
        interrupted = interrupted or rounds.interleave(up, count, one_round)
        for point, server in up:
            if process.descriptors(server.pids) < point.held:
                missing[point] = "the server did not keep the connections to the end"
                del results[point]
    report.progress_end()
    return Growth(results, missing, interrupted)


def _step(server: servers.Server, group: load.Generators, rate: float, seconds: float, first: float | None) -> Step:
    plan = Plan((), rate=rate, seconds=seconds, sources=16, timeout=5.0, max_open=load.open_limit())
    tally, used = rounds.run(server, group, plan)
    found = load.findings(plan, tally, {})
    step = Step(
        offered=rate,
        started=found["started_rate"],
        completed=found["completed_rate"],
        unanswered=found["started"] - found["completed"],
        p50_us=tally.fin.percentile(50),
        p99_us=tally.fin.percentile(99),
        cpu_us=used.cpu_ns / max(tally.started, 1) / 1000,
        server_cpu=used.cpu_ns / tally.window_ns,
        generator_cpu=tally.cpu_share,
        reason=None,
    )
    reason = knee_reason(step, first, found["generator"]["because"])
    return replace(step, reason=reason)


def _too_much(held: int) -> str | None:
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit in {resource.RLIM_INFINITY, -1} or held + _ROOM <= limit:
        return None
    return f"needs {held + _ROOM} open files in one process; the hard limit is {limit}"
