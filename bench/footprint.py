"""What a server costs while nobody asks: memory, threads, descriptors, time to start, wake-ups."""

import contextlib
import time
from collections.abc import Mapping
from typing import NamedTuple

from bench import machine, process, report, rounds, servers
from bench.spread import Spread, ratios, spread

__all__ = ["BASE", "Footprint", "footprint", "rows_of", "worker_notes"]

#: What the ratios refer to.
BASE = "empty-uvloop"

HEAD = ("server", "RSS KiB", "ratio", "PSS", "ratio", "private dirty", "threads", "fds", "start ms", "ratio")
IDLE_HEAD = ("wake-ups", "CPU ms")

# Numbers of workers whose memory is compared, for what a further one takes.
_FEW_AND_MORE = (2, 4)

# nullsmtpd keeps whoever asked whether it is there for its linger time, 2 s: idle begins after that.
_QUIET = 3.0


class Footprint(NamedTuple):
    """Memory in KiB, medians over the starts; ``wakeups`` and ``idle_cpu_ms`` are None unless idleness was watched."""

    rss: Spread
    pss: Spread
    private_dirty: Spread
    threads: int
    descriptors: int
    start_ms: Spread
    starts: list[float]
    rss_ratio: Spread | None
    pss_ratio: Spread | None
    start_ratio: Spread | None
    wakeups: int | None = None
    idle_cpu_ms: float | None = None

    def record(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return {name: value._asdict() if isinstance(value, Spread) else value for name, value in self._asdict().items()}


class _Start(NamedTuple):
    memory: process.Memory
    threads: int
    descriptors: int
    ready_ms: float


def footprint(*, starts: int, idle: float) -> tuple[dict[str, Footprint], dict[str, str], bool]:
    """Start each server ``starts`` times, in turn, then watch all of them do nothing for ``idle`` seconds.

    Returns the footprints, why servers are missing, and whether Ctrl-C ended it early.
    """
    shared = [servers.nullsmtpd("--workers", str(count), name=_with_workers(count)) for count in _FEW_AND_MORE]
    arms = [servers.ARMS["nullsmtpd"], *shared, *servers.PEERS.values(), servers.ARMS["nginx"]]
    missing = {arm.name: why for arm in arms if (why := servers.is_there(arm))}
    arms = [arm for arm in arms if arm.name not in missing]
    seen: dict[str, list[_Start]] = {arm.name: [] for arm in arms}

    def one_start(number: int, arm: servers.Arm) -> None:
        report.progress(f"start {number + 1} of {starts}: {arm.name}")
        seen[arm.name].append(_start(arm))

    interrupted = rounds.interleave(arms, starts, one_start)
    quiet: dict[str, tuple[int, float]] = {}
    try:
        if not interrupted and idle:
            quiet = _watch(arms, idle)
    except KeyboardInterrupt:
        interrupted = True
    report.progress_end()
    return {name: _sum_up(seen, name, quiet) for name in seen if seen[name]}, missing, interrupted


def rows_of(found: Mapping[str, Footprint]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the table."""
    rows = [
        [
            name,
            report.with_spread(one.rss, 0),
            report.with_spread(one.rss_ratio, 3),
            report.number(one.pss.median, 0),
            report.with_spread(one.pss_ratio, 3),
            report.number(one.private_dirty.median, 0),
            str(one.threads),
            str(one.descriptors),
            report.with_spread(one.start_ms),
            report.with_spread(one.start_ratio, 2),
            report.number(one.wakeups, 0),
            report.number(one.idle_cpu_ms, 2),
        ]
        for name, one in found.items()
    ]
    return [*HEAD, *IDLE_HEAD], rows


def worker_notes(found: Mapping[str, Footprint]) -> list[str]:
    """Return what a further worker takes: proportional set size (PSS), as processes share what they have in common."""
    few, more = _FEW_AND_MORE
    if not {_with_workers(few), _with_workers(more)} <= found.keys():
        return []
    further = (found[_with_workers(more)].pss.median - found[_with_workers(few)].pss.median) / (more - few)
    return [f"A further worker: {further:,.0f} KiB PSS."]


def _with_workers(count: int) -> str:
    return f"nullsmtpd-{count}-workers"


def _start(arm: servers.Arm) -> _Start:
    with servers.running(arm, cpus=machine.server_cpus()) as server:
        server.settle(quiet=0.1)
        return _Start(
            process.memory(server.family),
            process.threads(server.family),
            process.descriptors(server.family),
            server.ready_ms,
        )


def _watch(arms: list[servers.Arm], idle: float) -> dict[str, tuple[int, float]]:
    """Return context switches and CPU milliseconds of each server over ``idle`` seconds, all of them at once."""
    with contextlib.ExitStack() as stack:
        up = [stack.enter_context(servers.running(arm, cpus=machine.server_cpus())) for arm in arms]
        report.progress(f"idle for {idle:g} s")
        time.sleep(_QUIET)
        before = [process.usage(server.family) for server in up]
        time.sleep(idle)
        used = [process.usage(server.family).since(then) for server, then in zip(up, before, strict=True)]
    return {arm.name: (one.voluntary + one.involuntary, one.cpu_ns / 1e6) for arm, one in zip(arms, used, strict=True)}


def _sum_up(seen: dict[str, list[_Start]], name: str, quiet: dict[str, tuple[int, float]]) -> Footprint:
    count = min(len(seen[name]), len(seen[BASE]))
    ours, base = seen[name], seen[BASE][:count]

    def ratio(values: list[float], others: list[float]) -> Spread | None:
        return spread(ratios(values[:count], others))

    def of(values: list[float]) -> Spread:
        found = spread(values)
        assert found
        return found

    wakeups, cpu = quiet.get(name, (None, None))
    return Footprint(
        rss=of([one.memory.rss for one in ours]),
        pss=of([one.memory.pss for one in ours]),
        private_dirty=of([one.memory.private_dirty for one in ours]),
        threads=max(one.threads for one in ours),
        descriptors=max(one.descriptors for one in ours),
        start_ms=of([one.ready_ms for one in ours]),
        starts=[one.ready_ms for one in ours],
        rss_ratio=ratio([one.memory.rss for one in ours], [one.memory.rss for one in base]),
        pss_ratio=ratio([one.memory.pss for one in ours], [one.memory.pss for one in base]),
        start_ratio=ratio([one.ready_ms for one in ours], [one.ready_ms for one in base]),
        wakeups=wakeups,
        idle_cpu_ms=cpu,
    )
