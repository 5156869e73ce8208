"""What a connection costs servers at several rates."""

import argparse
import contextlib
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench import client, load, measure, report, servers, system
from bench.measure import Round, percentiles
from bench.report import Report
from bench.servers import ROOM, Arm, Server

#: The rate that stands for a closed loop: every client opens its next connection when the last has ended.
CLOSED = 0.0

# What ratios refer to when it is measured.
_PEERS = ("nginx", "smtp-sink")

# A closed loop is bounded by a number too: what it leaves in TIME_WAIT for a minute slows down the rounds after it.
_CLOSED_LOOP_CONNECTIONS = 20_000

_WARM_UP = 500  # connections


def compare(options: argparse.Namespace) -> Report:
    """Measure each server at each rate in interleaved rounds. Ratios are to a peer, or without one to the first server.

    All servers run all the time, on the first CPUs; an idle one costs nothing. The clients have the other CPUs.
    Raises `ValueError` for what cannot be measured, `RuntimeError` if a server does not come up, ends, or does not keep
    its idle clients, and KeyboardInterrupt if Ctrl-C comes before the first measurement.
    """
    arms: list[Arm] = options.arms
    if len({arm.script for arm in arms}) > 1:
        raise ValueError("--arms: a line and a dialogue are different units of work: give servers for one of them")
    idle = sum(arm.idle for arm in arms)
    system.need_files(idle + max(options.clients, ROOM), "--arms" if idle else "--clients")
    missing = servers.missing(arms)
    if not (there := [arm for arm in arms if arm.name not in missing]):
        raise RuntimeError("; ".join(["nothing to measure", *missing.values()]))
    base = next((arm.name for arm in there if arm.name in _PEERS), there[0].name)
    most = max(arm.instances for arm in arms)
    closed = client.Plan((), clients=options.clients, connections=_CLOSED_LOOP_CONNECTIONS, seconds=options.seconds)
    with contextlib.ExitStack() as stack:
        up = [stack.enter_context(_prepared(arm)) for arm in there]
        stack.enter_context(system.pinned(system.client_cpus(most)))
        report.progress("warm-up")
        for server in up:
            _measure(server, closed._replace(connections=_WARM_UP))
        open_loop = client.Plan((), seconds=options.seconds, max_open=ROOM // 2)
        found, interrupted = measure.interleave(
            [[(rate, server) for server in up] for rate in options.rates],
            options.rounds,
            lambda what: _measure(what[1], open_loop._replace(rate=what[0]) if what[0] else closed),
        )
    whole = measure.costs(
        ["rate", "server"],
        {(f"{rate:,.7g}" if rate else "closed", server.arm.name): one for (rate, server), one in found.items()},
        base,
    )
    results = whole.record["results"]
    return whole._replace(
        notes=[
            f"rate: connections a second, or a closed loop of {options.clients} clients.",
            "CPU: user and system time of the server for one connection.",
            f"ratio: to {base}, round by round.",
            f"CPU, ratio: median (quartiles) of {options.rounds} rounds of {options.seconds:g} s.",
            "p50, p99: from the scheduled start of a connection to the FIN.",
            "lost: connections without the whole line.",
            *_cpu_notes(results, most),
            *(f"Missing: {name}: {why}." for name, why in missing.items()),
        ],
        record={"base": base, "missing": missing, **whole.record},
        failures=[f"{one['lost']:,} lost lines: {one['server']} at {one['rate']}" for one in results if one["lost"]],
        interrupted=interrupted,
    )


def _measure(server: Server, plan: client.Plan) -> Round:
    """Measure one run of the plan, targets and script left out. Raises KeyboardInterrupt if Ctrl-C ends it early."""
    arm, before = server.arm, system.cpu_ns(server.pids)
    tally = client.run(plan._replace(targets=server.targets, script=arm.script))
    if tally.interrupted:
        raise KeyboardInterrupt
    time.sleep(measure.SETTLE_SECONDS)
    if (kept := system.open_files(server.pids)) < arm.idle:
        raise RuntimeError(f"{arm.name}: the server has closed some of its idle clients: {kept} files are open")
    cpu_us = (system.cpu_ns(server.pids) - before) / max(tally.started, 1) / 1000
    p50, p99 = percentiles(tally.fin, 50, 99)
    per_second = tally.answered / tally.window
    return Round(cpu_us, p50, p99, per_second, tally.cpu_share, tally.late_ms, tally.started, tally.lost)


def _cpu_notes(results: Sequence[Mapping[str, Any]], most: int) -> Iterator[str]:
    cpus, client_cpus = system.server_cpus(most), system.client_cpus(most)
    yield f"CPUs: {len(cpus)} for the servers, {len(client_cpus - cpus) or 'the same'} for the clients."
    limits = []
    for one in results:
        share, late = one["generator_cpu"].median, one["late_ms"].median
        if share > load.BUSY or late > load.LATE_MS:
            limits.append(f"{one['rate']} with {one['server']} ({share:.0%}, {late:.1f} ms)")
    if limits:
        yield f"p50 and p99 are the generator's (its CPU, p99 of its late starts) at {', '.join(limits)}."


@contextlib.contextmanager
def _prepared(arm: Arm) -> Iterator[Server]:
    """Give the running server, its idle clients connected: they neither read nor close until the end."""
    with servers.running(arm) as server, contextlib.ExitStack() as idle:
        for number in range(arm.idle):
            sleeper = idle.enter_context(socket.socket())
            # Not from where other clients come: a kernel that has to search for a free port makes a slow client.
            sleeper.setsockopt(socket.IPPROTO_IP, client.IP_BIND_ADDRESS_NO_PORT, 1)
            sleeper.bind((f"127.0.1.{1 + number % 16}", 0))
            sleeper.connect(server.targets[0])
        yield server
