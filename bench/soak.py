"""Does a server stay correct and small? Clients of every behaviour for minutes, then lost lines, memory, open files."""

import argparse
import asyncio
import contextlib
import itertools
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bench import measure, report, servers, system
from bench.behaviours import BEHAVIOURS, LEFT, WHOLE, one_client
from bench.outcomes import GREETING
from bench.report import Report

#: Memory may move this much between the second quarter of the run and the last, in KiB or as a share, whichever is
#: more: an allocator breathes. 300 s at 500 a second are 37,500 connections between the two: 28 octets each.
ALLOWED_KIB = 1024
ALLOWED_SHARE = 0.05

#: Fewer samples than this are a start-up, not a trend.
LEAST_SAMPLES = 16

_CLIENT_TIMEOUT = 10.0
_STOP_TIMEOUT = 10.0
_CLOSE_TIMEOUT = 15.0  # for the server to close what is left: 2 s of lingering, 5 s of draining, and room
_MOST_OPEN = 8192
_ENOUGH = 0.9  # of the clients


@dataclass
class _Soak:
    started: int = 0
    ended: Counter[str] = field(default_factory=Counter)  # clients, by their behaviour
    lost: dict[str, Counter[str]] = field(default_factory=dict)  # what they saw instead of the line
    rss: list[int] = field(default_factory=list)  # KiB
    open_files: list[int] = field(default_factory=list)  # before and after
    status: int | None = None  # exit status after SIGTERM; None: it did not end
    interrupted: bool = False


def growth(memory: Sequence[int]) -> int | None:
    """Return by how many KiB the median of the last quarter exceeds that of the second; None: too few to tell."""
    if len(memory) < LEAST_SAMPLES:
        return None
    quarter = len(memory) // 4
    return round(statistics.median(memory[-quarter:]) - statistics.median(memory[quarter : 2 * quarter]))


def soak(options: argparse.Namespace) -> Report:
    """Start a server, send it clients of all behaviours at a steady rate, and judge it.

    Raises `ValueError` for a server that takes a dialogue, `RuntimeError` if it does not come up, or ends by itself.
    """
    if options.arm.script != GREETING:
        raise ValueError(f"--arm: {options.arm.name} takes a dialogue; give a server that sends one line")
    found = _Soak(lost={name: Counter() for name in BEHAVIOURS})
    most_open = min(_MOST_OPEN, system.need_files(1, "soak"))
    with servers.running(options.arm) as server:
        # uvloop opens /dev/null with its first transport, which is made to drain a client.
        asyncio.run(one_client(server.targets[0], "blasts_1_mib", _CLIENT_TIMEOUT))
        time.sleep(measure.SETTLE_SECONDS)
        found.open_files.append(system.open_files(server.pids))
        try:
            asyncio.run(_run(server, found, options.duration, options.rate, most_open))
            report.progress("waiting for the server to close what is left")
            deadline = time.monotonic() + _CLOSE_TIMEOUT
            while system.open_files(server.pids) > found.open_files[0] and time.monotonic() < deadline:
                time.sleep(0.05)
        except KeyboardInterrupt:
            found.interrupted = True
        found.open_files.append(system.open_files(server.pids))
        server.processes[0].terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            found.status = server.processes[0].wait(_STOP_TIMEOUT)
    failures = list(_failures(found, options.arm.name))
    notes = [f"Open files before and after: {found.open_files}."]
    if found.rss:
        notes.append(f"RSS, KiB: first {found.rss[0]:,}, highest {max(found.rss):,}, last {found.rss[-1]:,}.")
    if growth(found.rss) is None:
        notes.append("Too short to tell whether memory grows.")
    if found.started < _ENOUGH * options.duration * options.rate and not found.interrupted:
        notes.append(f"Only {found.started:,} clients: this machine is too slow for {options.rate:g} a second.")
    return Report(
        head=["behaviour", "clients", "lost lines"],
        rows=[[name, f"{found.ended[name]:,}", f"{lost.total():,}"] for name, lost in found.lost.items()],
        notes=[*notes, *([] if failures or found.interrupted else ["Passed."])],
        record=vars(found) | {"failures": failures},
        failures=failures,
        interrupted=found.interrupted,
    )


def _failures(found: _Soak, arm: str) -> Iterator[str]:
    for name, lost in found.lost.items():
        if lost:
            instead = ", ".join(f"{what} ({count})" for what, count in lost.items())
            yield f"{name}: {lost.total():,} lost lines: {instead}"
    if found.status is None:
        yield f"SIGTERM did not end {arm} within {_STOP_TIMEOUT:g} s"
    elif found.status and arm == "nullsmtpd":
        yield f"SIGTERM ended it with status {found.status}"
    if not found.interrupted:  # which cuts off clients
        if not found.started:
            yield "not one client was started"
        if found.open_files[1] > found.open_files[0]:
            yield f"open files grew from {found.open_files[0]} to {found.open_files[1]}"
    grown = growth(found.rss)
    if grown is not None and grown > max(ALLOWED_KIB, ALLOWED_SHARE * found.rss[len(found.rss) // 2]):
        yield f"memory grew by {grown} KiB from the second quarter to the last"


async def _run(server: servers.Server, found: _Soak, duration: float, rate: float, most_open: int) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)  # Ctrl-C within a task is raised by run() too; no traceback beside that
    clients: set[asyncio.Task[None]] = set()
    names, begun, next_sample = itertools.cycle(BEHAVIOURS), loop.time(), 0.0

    async def one(name: str) -> None:
        outcome = await one_client(server.targets[0], name, _CLIENT_TIMEOUT)
        found.ended[name] += 1
        if outcome not in {WHOLE, LEFT}:
            found.lost[name][outcome] += 1

    while (passed := loop.time() - begun) < duration:
        if passed >= next_sample:
            next_sample += max(duration / 60, 0.1)
            found.rss.append(system.memory(server.pids)[0])
            lost = sum(counts.total() for counts in found.lost.values())
            report.progress(f"{found.started:,} clients, {lost:,} lost lines; {duration - passed:.0f} s left")
        while found.started < passed * rate and len(clients) < most_open:
            clients.add(client := loop.create_task(one(next(names))))
            client.add_done_callback(clients.discard)
            found.started += 1
        await asyncio.sleep(0.002)
    await asyncio.gather(*clients)
