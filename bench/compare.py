"""What a connection costs nullsmtpd and other servers at several rates: interleaved rounds on one machine."""

import contextlib
import itertools
import random
import socket
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench import load, machine, report, rounds, servers
from bench.client import IP_BIND_ADDRESS_NO_PORT, Plan
from bench.rounds import Round
from bench.spread import Spread

__all__ = ["CLOSED", "HEAD", "Comparison", "Settings", "compare", "label", "notes_of", "rows_of", "series_of"]

#: The rate that stands for a closed loop: every client opens its next connection when the last has ended.
CLOSED = 0.0

HEAD = ("rate", "server", "CPU µs", "ratio", "p50 ms", "p99 ms", "lost")

#: A closed loop is bounded by a number too: what it leaves in TIME_WAIT for a minute slows down the rounds after it.
CLOSED_LOOP_CONNECTIONS = 20_000

_WARM_UP = 500  # connections, not counted


class Settings(NamedTuple):
    """How to measure: ``rounds`` times ``seconds`` at each of the ``rates``; ratios refer to the arm ``base``."""

    base: str
    rates: Sequence[float]
    rounds: int
    seconds: float
    clients: int


class Comparison(NamedTuple):
    """Every round of every arm at every rate, why arms are missing, and whether Ctrl-C ended it early."""

    settings: Settings
    rounds: dict[tuple[float, str], list[Round]]
    missing: dict[str, str]
    interrupted: bool

    def ratio(self, rate: float, arm: str) -> Spread | None:
        """Return CPU time per connection of ``arm`` in relation to the base, taken round by round."""
        return rounds.cpu_ratio(self.rounds[rate, arm], self.rounds.get((rate, self.settings.base), ()))

    @property
    def lost(self) -> int:
        """How many connections did not get the whole line and the FIN, over all arms."""
        return sum(rounds.unanswered(series) for series in self.rounds.values())

    def record(self) -> dict[str, object]:
        """Return everything as JSON has it; a spread is median, quartiles, and the number of rounds behind them."""
        return {
            "settings": self.settings._asdict() | {"rates": [label(rate) for rate in self.settings.rates]},
            "missing": self.missing,
            "results": [
                {"rate": label(rate), "server": arm, "ratio": _as_dict(self.ratio(rate, arm))}
                | {name: _as_dict(rounds.spread_of(series, name)) for name in ("cpu_us", "p50_us", "p99_us")}
                | {"connections_per_second": _as_dict(rounds.spread_of(series, "rate"))}
                | {"started": sum(one.started for one in series), "lost": rounds.unanswered(series)}
                | {"generator_cpu": max(one.generator_cpu for one in series)}
                for (rate, arm), series in self.rounds.items()
            ],
        }


def compare(arms: Sequence[servers.Arm], settings: Settings) -> Comparison:
    """Measure the arms at each of the rates in interleaved rounds.

    All servers run all the time, on the first CPU; an idle one costs nothing. The generators have the other CPUs.
    Within a round, the arms take turns at one rate, in random order, before the next rate: a ratio compares what was
    measured within seconds. Raises `RuntimeError` if a server does not come up or does not keep its idle clients.
    """
    rates, count = settings.rates, settings.rounds
    missing = {arm.name: why for arm in arms if (why := servers.is_there(arm))}
    found: dict[tuple[float, str], list[Round]] = {}
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(load.generators(load.default_processes(), machine.other_cpus()))
        up = [stack.enter_context(_prepared(arm)) for arm in arms if arm.name not in missing]
        progress = report.Progress(count * len(rates) * len(up))

        shuffle = random.Random(rounds.SEED).shuffle
        interrupted = rounds.warm_up(up, group, _plan(CLOSED, settings)._replace(connections=_WARM_UP))
        try:
            for number, rate in itertools.product(range(0 if interrupted else count), rates):
                shuffle(up)
                for server in up:
                    progress.step(f"round {number + 1} of {count}, {label(rate)}: {server.arm.name}")
                    measured = rounds.measure(server, group, _plan(rate, settings))
                    found.setdefault((rate, server.arm.name), []).append(measured)
        except KeyboardInterrupt:
            interrupted = True
    report.progress_end()
    ordered = {(rate, arm.name): found[rate, arm.name] for rate in rates for arm in arms if (rate, arm.name) in found}
    return Comparison(settings, ordered, missing, interrupted)


def label(rate: float) -> str:
    """Return what a table calls this rate, in connections a second."""
    return f"{rate:,g}" if rate else "closed"


def rows_of(comparison: Comparison) -> list[list[str]]:
    """Return the rows under `HEAD`."""
    rows = []
    for (rate, arm), series in comparison.rounds.items():
        cpu = rounds.spread_of(series, "cpu_us")
        times = [rounds.median_of(series, name) for name in ("p50_us", "p99_us")]
        rows.append(
            [
                label(rate),
                arm,
                report.with_spread(cpu, 0 if cpu and cpu.median >= 100 else 1),  # noqa: PLR2004 - three digits
                report.with_spread(comparison.ratio(rate, arm), 2),
                *(report.number(one / 1000 if one is not None else None, 2) for one in times),
                f"{rounds.unanswered(series):,}",
            ]
        )
    return rows


def series_of(comparison: Comparison) -> report.Series:
    """Return what the chart shows: CPU per connection of each arm, by rate."""
    series: report.Series = {}
    for (rate, arm), measured in comparison.rounds.items():
        if cpu := rounds.spread_of(measured, "cpu_us"):
            series.setdefault(arm, {})[rate] = cpu
    return series


def notes_of(comparison: Comparison) -> list[str]:
    """Return what a reader of the table must know beside it."""
    settings = comparison.settings
    notes = [
        f"rate: connections a second, or a closed loop of {settings.clients} clients.",
        "CPU: user and system time of the server for one connection.",
        f"ratio: to {settings.base}, round by round.",
        f"CPU and ratio: median (quartiles) of {settings.rounds} rounds of {settings.seconds:g} s.",
        "p50, p99: from the scheduled start of a connection to the FIN.",
        "lost: connections without the whole line and a FIN.",
        *(f"missing: {name}: {why}" for name, why in comparison.missing.items()),
    ]
    if machine.other_cpus() == machine.server_cpus():
        notes.append("Only one CPU: servers and clients had to share it, which makes every figure worse.")
    busiest: dict[float, float] = {}
    for (rate, _), series in comparison.rounds.items():
        busiest[rate] = max(busiest.get(rate, 0.0), *(one.generator_cpu for one in series))
    if busy := [f"{label(rate)} ({share:.0%})" for rate, share in busiest.items() if share > load.BUSY]:
        notes.append("The generator's CPU was the limit, so p50 and p99 are its own, at: " + ", ".join(busy) + ".")
    return notes


def _plan(rate: float, settings: Settings) -> Plan:
    return Plan(
        targets=(),
        clients=0 if rate else settings.clients,
        rate=rate,
        connections=1_000_000 if rate else CLOSED_LOOP_CONNECTIONS,
        seconds=settings.seconds,
        sources=16,
        max_open=load.open_limit(),
    )


@contextlib.contextmanager
def _prepared(arm: servers.Arm) -> Iterator[servers.Server]:
    """Give the running server, its ``held`` clients connected: they neither read nor close until the end."""
    with (
        servers.running(arm, addresses=arm.addresses, cpus=machine.server_cpus()) as server,
        contextlib.ExitStack() as held,
    ):
        machine.raise_nofile()
        for number in range(arm.held):
            client = held.enter_context(socket.socket())
            # Not from where `client` comes: a kernel that has to search for a free port makes a slow client.
            client.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            client.bind((f"127.0.1.{1 + number % 16}", 0))
            client.connect(server.targets[0])
        time.sleep(0.5)
        _check_held(server)
        yield server
        _check_held(server)


def _check_held(server: servers.Server) -> None:
    if (kept := server.descriptors()) < server.arm.held:
        raise RuntimeError(f"{server.arm.name}: the server has closed some of its idle clients: {kept} files are open")


def _as_dict(found: Spread | None) -> dict[str, float] | None:
    return found._asdict() if found else None
