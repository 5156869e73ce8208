"""How a server answers under load: generator processes, their plans, and what they saw taken together."""

import contextlib
import functools
import ipaddress
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import client, machine
from bench.client import Plan, Tally
from bench.outcomes import ANSWERED, Outcome

if TYPE_CHECKING:
    from collections import Counter

    from bench.latency import Latencies

__all__ = [
    "Generators",
    "Hold",
    "NotLoopbackError",
    "Target",
    "default_processes",
    "findings",
    "generators",
    "open_limit",
    "resolve",
]

#: Beyond this share of a CPU the generator, not the server, decides what is measured.
BUSY = 0.9

#: Open loop: connections that started later than this were measured by a generator that could not keep up.
LATE_US = 5000.0

_START_DELAY_NS = 20_000_000  # for every process to have its plan before the first connection
_SPARE_DESCRIPTORS = 64
_MOST_OPEN = 16384  # per process: open loop, an overloaded server must not fill the memory
_PATIENCE = 30.0  # seconds for a process to begin, and to report after its time is up

Progress = Callable[[str], None]


class NotLoopbackError(Exception):
    """The target is another host, and nobody said that it may be loaded."""


class Target(NamedTuple):
    """A literal address."""

    host: str
    port: int
    family: int


class Hold(NamedTuple):
    """IPv4 connections to open, not to read from, and to keep as long as the process lives."""

    target: tuple[str, int]
    connections: int


def resolve(text: str, *, allow_any: bool) -> Target:
    """Return the first address of ``HOST:PORT`` or ``[v6]:PORT``.

    Raises `NotLoopbackError` if it is not a loopback address, unless ``allow_any``; `ValueError` for a wrong notation,
    `OSError` for a name that does not resolve.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise ValueError(f"{text!a}: give HOST:PORT or [v6]:PORT")
    found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    family, _, _, _, sockaddr = found[0]
    address = str(sockaddr[0])
    if not allow_any and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        raise NotLoopbackError(
            f"{text} is {address}, not this host's loopback; add --yes-i-run-this-server if it is yours to load"
        )
    return Target(address, int(port), int(family))


class Generators:
    """Generator processes, kept from one run to the next; see `generators`."""

    def __init__(self, count: int, cpus: set[int] | None) -> None:
        """Start ``count`` processes on ``cpus``."""
        self._context = multiprocessing.get_context("spawn")
        self._processes = []
        self._pipes: list[Connection] = []
        # SIGINT stays blocked until a process has its own handler: Ctrl-C reaches all processes of the terminal.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(count):
                ours, theirs = self._context.Pipe()
                process = self._context.Process(target=_serve, args=(theirs, cpus), daemon=True)
                process.start()
                theirs.close()
                self._processes.append(process)
                self._pipes.append(ours)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for pipe in self._pipes:
            self._receive(pipe, _PATIENCE)

    def run(self, plan: Plan, progress: Progress | None = None) -> tuple[Tally, bool]:
        """Carry out one plan together; return what they saw and whether Ctrl-C ended it early."""
        # A process with no client of a closed loop would take its share for an open one.
        pipes = self._pipes[: plan.clients or None]
        start_at = time.perf_counter_ns() + _START_DELAY_NS
        for index, pipe in enumerate(pipes):
            pipe.send(_share(plan, index, len(pipes))._replace(start_at=start_at))
        interrupted = False
        try:
            self._watch(pipes, plan, progress)
        except KeyboardInterrupt:
            interrupted = True
            self._interrupt()
        # The time limit counts twice: for what starts late, and for what has started.
        patience = plan.seconds + 2 * plan.timeout + _PATIENCE
        tallies: list[Tally] = [self._receive(pipe, patience) for pipe in pipes]
        return functools.reduce(_merge, tallies), interrupted

    def hold(self, target: tuple[str, int], count: int) -> int:
        """Open ``count`` connections that read nothing, from the first process; return how many there are."""
        self._pipes[0].send(Hold(target, count))
        return int(self._receive(self._pipes[0], _PATIENCE * 4))

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(1)
            if process.is_alive():
                process.terminate()
                process.join()

    @staticmethod
    def _watch(pipes: Sequence[Connection], plan: Plan, progress: Progress | None) -> None:
        begun = time.monotonic()
        while not wait(pipes, 0.5):
            if progress:
                progress(f"{min(time.monotonic() - begun, plan.seconds):.0f} of {plan.seconds:g} s")

    def _interrupt(self) -> None:
        for process in self._processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGINT)

    @staticmethod
    def _receive(pipe: Connection, patience: float) -> Any:  # noqa: ANN401 - a Tally, or a number
        if not pipe.poll(patience):
            raise RuntimeError("a generator process does not answer")
        return pipe.recv()


@contextlib.contextmanager
def generators(count: int, cpus: set[int] | None = None) -> Iterator[Generators]:
    """Start generator processes and end them afterwards."""
    group = Generators(count, cpus)
    try:
        yield group
    finally:
        group.close()


def findings(plan: Plan, tally: Tally, kernel: dict[str, int]) -> dict[str, Any]:
    """Return what a report says about one run: rates a second, times in microseconds, outcomes, the generator's share.

    A completed connection is one whose line, or whole dialogue if there are commands, was read.

    ``plan`` is the whole one, not one process's share of it. ``kernel`` are the kernel's counters over the run.
    """
    seconds = tally.window_ns / 1e9
    limits = _limits(plan, tally)
    return {
        "mode": "closed" if plan.clients else "open",
        "unit": "dialogue" if plan.commands else "greeting",
        "clients": plan.clients or None,
        "offered_rate": plan.rate or None,
        "early_share": plan.early,
        "seconds": seconds,
        "started": tally.started,
        "started_rate": tally.started / seconds if seconds else None,
        "completed": sum(tally.outcomes[outcome] for outcome in ANSWERED),
        "completed_rate": tally.completed / seconds if seconds else None,
        "outcomes": {
            (outcome.of_dialogue if plan.commands else outcome.value): tally.outcomes[outcome] for outcome in Outcome
        }
        | {"unfinished": tally.started - tally.outcomes.total()},
        "not_started": dict(tally.not_started),
        "connect_us": tally.connect.summary(),
        "first_octet_us": tally.first.summary(),
        "fin_us": tally.fin.summary(),
        "generator": {
            "cpu_share": tally.cpu_share,
            "late_us": tally.late.summary(),
            "at_open_limit": tally.at_limit,
            "was_the_limit": bool(limits),
            "because": limits,
        },
        "kernel": kernel,
    }


def _limits(plan: Plan, tally: Tally) -> list[str]:
    """Return why the figures may be the generator's rather than the server's."""
    limits = []
    if tally.cpu_share > BUSY:
        limits.append(f"a generator process used {tally.cpu_share:.0%} of a CPU")
    late = tally.late.percentile(99)
    if late is not None and late > LATE_US:
        limits.append(f"1 % of the connections started {late / 1000:.1f} ms late or later")
    if tally.at_limit:
        limits.append(f"the limit of {plan.max_open} open connections was reached")
    if tally.not_started:
        limits.append("the kernel gave no connection: " + ", ".join(sorted(tally.not_started)))
    return limits


def default_processes() -> int:
    """Return how many generator processes the CPUs beside the server's have room for, 8 at most."""
    return min(len(machine.other_cpus()), 8)


def open_limit() -> int:
    """Return how many connections one process may have open, raising its limit of open files first."""
    return max(1, min(_MOST_OPEN, machine.raise_nofile() - _SPARE_DESCRIPTORS))


def _share(plan: Plan, index: int, count: int) -> Plan:
    """Return the part of one of ``count`` processes; the parts add up to the plan."""
    return plan._replace(
        clients=_part(plan.clients, index, count),
        rate=plan.rate / count,
        phase=index / plan.rate if plan.rate else 0.0,
        connections=_part(plan.connections, index, count),
    )


def _part(whole: int, index: int, count: int) -> int:
    return whole // count + (index < whole % count)


def _merge(one: Tally, other: Tally) -> Tally:
    for name in ("connect", "first", "fin", "late"):
        latencies: Latencies = getattr(one, name)
        latencies.add(getattr(other, name))
    outcomes: Counter[Outcome] = one.outcomes + other.outcomes
    return one._replace(
        started=one.started + other.started,
        outcomes=outcomes,
        not_started=one.not_started + other.not_started,
        completed=one.completed + other.completed,
        window_ns=max(one.window_ns, other.window_ns),
        cpu_share=max(one.cpu_share, other.cpu_share),
        at_limit=one.at_limit + other.at_limit,
    )


def _serve(pipe: Connection, cpus: set[int] | None) -> None:
    """Be a generator process: carry out plans until the pipe closes."""
    stops: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: stops.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    machine.raise_nofile()
    with contextlib.suppress(OSError):  # proc(5): by default a timer may be 50 µs late, a quarter of what is measured
        Path("/proc/self/timerslack_ns").write_text("1")
    held: list[socket.socket] = []
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        pipe.send(0)
        while True:
            job = pipe.recv()
            stops.clear()
            if isinstance(job, Hold):
                held += _open(job)
                pipe.send(len(held))
            else:
                pipe.send(client.run(job, lambda: bool(stops)))


def _open(job: Hold) -> list[socket.socket]:
    opened = []
    with contextlib.suppress(OSError):
        for number in range(job.connections):
            connection = socket.socket()
            opened.append(connection)
            # Not from where `client` comes: a kernel that has to search for a free port makes a slow client.
            if sys.platform == "linux":
                connection.setsockopt(socket.IPPROTO_IP, client.IP_BIND_ADDRESS_NO_PORT, 1)
                connection.bind((f"127.0.1.{1 + number % 16}", 0))
            connection.settimeout(_PATIENCE)
            connection.connect(job.target)
    return opened
