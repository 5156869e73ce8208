"""What a connection costs nullsmtpd and other servers, or several instances of it, at several rates."""

import argparse
import contextlib
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import load, measure, report, servers, system
from bench.client import IP_BIND_ADDRESS_NO_PORT, Plan
from bench.report import Report
from bench.stats import Spread, spread

#: The rate that stands for a closed loop: every client opens its next connection when the last has ended.
CLOSED = 0.0

#: What is measured by default: from what a host sees in a quiet hour to a flood.
RATES = (50.0, 200.0, 1000.0, 4000.0, CLOSED)
DIALOGUE_RATES = (200.0, CLOSED)

# A closed loop is bounded by a number too: what it leaves in TIME_WAIT for a minute slows down the rounds after it.
_CLOSED_LOOP_CONNECTIONS = 20_000

_WARM_UP = 500  # connections

#: Connections a second; one generator reaches some ten thousand.
LOWEST_RATE, MAX_RATE = 0.001, 1_000_000


def compare(options: argparse.Namespace) -> Report:
    """Measure each server at each rate. Raises `ValueError` for what cannot be measured."""
    known = servers.DIALOGUES if options.dialogue else servers.ARMS
    names = options.arms or list(known)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--arms: unknown {', '.join(unknown)}; there are {', '.join(known)}")
    varied = servers.varied(options.linger, options.lingering, options.addresses)
    if options.dialogue and varied:
        raise ValueError("--linger, --lingering and --addresses vary mode close: leave out --dialogue")
    arms = list({arm.name: arm for arm in [*(known[name] for name in names), *varied]}.values())
    base = options.base or ("smtp-sink" if options.dialogue else "nginx")
    if options.base and base not in (there := [arm.name for arm in arms]):
        raise ValueError(f"--base: unknown {base}; there are {', '.join(there)}")
    return measured(arms, base, options.rates or (DIALOGUE_RATES if options.dialogue else RATES), options)


def measured(arms: Sequence[servers.Arm], base: str, rates: Iterable[float], options: argparse.Namespace) -> Report:
    """Measure each server at each rate in interleaved rounds; return a table, and draw the chart if it is asked for.

    All servers run all the time, on the first CPUs; an idle one costs nothing. The clients have the other CPUs.
    Raises `ValueError` for too few open files, `RuntimeError` if a server does not come up, ends, or does not keep its
    idle clients, and KeyboardInterrupt if Ctrl-C comes before the first measurement.
    """
    idle = sum(arm.idle for arm in arms)
    system.need_files(idle + max(options.clients, servers.ROOM), "--lingering" if idle else "--clients")
    missing = servers.missing(arms)
    if not (there := [arm for arm in arms if arm.name not in missing]):
        raise RuntimeError("; ".join(["nothing to measure", *missing.values()]))
    most = max(arm.instances for arm in arms)
    with contextlib.ExitStack() as stack:
        up = [stack.enter_context(_prepared(arm)) for arm in there]
        stack.enter_context(system.pinned(system.client_cpus(most)))
        report.progress("warm-up")
        for server in up:
            measure.measure(server, _plan(CLOSED, options)._replace(connections=_WARM_UP))
        found, interrupted = measure.interleave(
            [[(rate, server) for server in up] for rate in rates],
            options.rounds,
            lambda what: measure.measure(what[1], _plan(what[0], options)),
        )
    if options.chart:
        _draw(options.chart, found)
    rows, results = measure.tabulate(
        ["rate", "server"],
        {(_label(rate), server.arm.name): series for (rate, server), series in found.items()},
        base,
    )
    return Report(
        head=["rate", "server", *measure.HEAD],
        rows=rows,
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
        record={"base": base, "missing": missing, "results": results},
        left=2,
        failures=[f"{one['lost']:,} lost lines: {one['server']} at {one['rate']}" for one in results if one["lost"]],
        interrupted=interrupted,
    )


def sweep(options: argparse.Namespace) -> Report:
    """Measure one or more instances of nullsmtpd that share a port, at rising rates.

    Raises `ValueError` for a rate that no server reaches, `RuntimeError` if an instance does not come up.
    """
    rates = [options.first_rate * options.factor**step for step in range(options.steps)]
    if not LOWEST_RATE <= rates[-1] <= MAX_RATE:
        raise ValueError(
            f"--steps {options.steps}: the last rate would be {rates[-1]:g}, not from {LOWEST_RATE:g} to {MAX_RATE:,}"
        )
    arms = [servers.nullsmtpd(name=f"instances: {count}", instances=count) for count in options.instances]
    return measured(arms, arms[0].name, dict.fromkeys(rates), options)


def _label(rate: float) -> str:
    return f"{rate:,.7g}" if rate else "closed"


def _plan(rate: float, options: argparse.Namespace) -> Plan:
    return Plan(
        targets=(),
        clients=0 if rate else options.clients,
        rate=rate,
        connections=1_000_000 if rate else _CLOSED_LOOP_CONNECTIONS,
        seconds=options.seconds,
        max_open=servers.ROOM // 2,
    )


def _draw(path: Path, found: Mapping[tuple[float, servers.Server], Sequence[measure.Round]]) -> None:
    facts = system.describe()
    series: dict[str, dict[float, Spread]] = {}
    for (rate, server), rounds in found.items():
        if cpu := spread([one.cpu_us for one in rounds]):
            series.setdefault(server.arm.name, {})[rate] = cpu
    unit = "dialogue" if server.arm.commands else "connection"
    note = f"nullsmtpd {facts['commit']}, {facts['kernel']}, {facts['cpu']}, Python {facts['python']}"
    path.write_text(report.chart(f"CPU time to answer one {unit}, µs, by rate", note, series), encoding="utf-8")


def _cpu_notes(results: Sequence[Mapping[str, Any]], most: int) -> list[str]:
    cpus, client_cpus = system.server_cpus(most), system.client_cpus(most)
    notes = [f"CPUs: {len(cpus)} for the servers, {len(client_cpus - cpus) or 'the same'} for the clients."]
    limits = []
    for one in results:
        share, late = one["generator_cpu"].median, one["late_ms"].median
        if share > load.BUSY or late > load.LATE_MS:
            limits.append(f"{one['rate']} with {one['server']} ({share:.0%}, {late:.1f} ms)")
    if limits:
        notes.append(f"p50 and p99 are the generator's (its CPU, p99 of its late starts) at {', '.join(limits)}.")
    return notes


@contextlib.contextmanager
def _prepared(arm: servers.Arm) -> Iterator[servers.Server]:
    """Give the running server, its idle clients connected: they neither read nor close until the end."""
    with servers.running(arm) as server, contextlib.ExitStack() as idle:
        for number in range(arm.idle):
            client = idle.enter_context(socket.socket())
            # Not from where `client` comes: a kernel that has to search for a free port makes a slow client.
            client.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            client.bind((f"127.0.1.{1 + number % 16}", 0))
            client.connect(server.targets[0])
        time.sleep(0.5)
        _check_idle(server)
        yield server
        _check_idle(server)


def _check_idle(server: servers.Server) -> None:
    if (kept := system.open_files(server.pids)) < server.arm.idle:
        raise RuntimeError(f"{server.arm.name}: the server has closed some of its idle clients: {kept} files are open")
