"""What a lookup costs `nullsmtpd relay`, cached and asked of a name server, and beside it what a RCPT costs Postfix."""

import contextlib
import itertools
import os
import selectors
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import machine, process, report, rounds, servers
from bench.latency import Latencies

__all__ = [
    "BASE",
    "HEAD",
    "Comparison",
    "Exchange",
    "Requests",
    "beside_servers",
    "compare",
    "lookups",
    "name_server",
    "relay",
    "rows_of",
]

#: What the ratios refer to.
BASE = "fixed reply"

HEAD = ("arm", "CPU µs", "user", "system", "ratio", "per core", "per second", "p50 µs", "p99 µs", "name server's µs")

#: Domains that are asked for again and again; a tenth of what the cache holds by default.
KNOWN = 1000

#: How much longer than expected any single answer may take before the run has failed.
_PATIENCE = 10.0

NULL_MX, NOT_FOUND = b"41:OK 556 5.1.10 ", b"9:NOTFOUND ,"

_CONTROL = Path(__file__).with_name("relay_control.py")


@dataclass(frozen=True)
class Round(rounds.Costs):
    """What one round showed, per exchange."""

    count: int
    name_server_us: float
    rate: float
    p50_us: float | None
    p99_us: float | None


@dataclass(frozen=True)
class Comparison:
    """Every round of every arm, and whether Ctrl-C ended it early."""

    rounds: dict[str, list[Round]]
    interrupted: bool

    def record(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return {"rounds": {name: [vars(one) for one in found] for name, found in self.rounds.items()}}


#: Requests without end, each with what its reply begins with.
Requests = Iterator[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Exchange:
    """One arm: whom to ask, for what, and whose CPU time it takes."""

    name: str
    connections: Sequence[socket.socket]
    requests: Requests
    end: bytes  # of a reply
    pids: Callable[[], Sequence[int]]


def exchange(arm: Exchange, count: int) -> list[int]:
    """Have ``count`` requests answered, a client's next one after the reply to its last; return their nanoseconds.

    Raises `RuntimeError` for a reply that is not the expected one, and when one does not come.
    """
    durations: list[int] = []
    left = itertools.islice(arm.requests, count)
    with selectors.DefaultSelector() as selector:

        def say_next(client: socket.socket) -> None:
            if (pair := next(left, None)) is None:
                selector.unregister(client)
                return
            selector.modify(client, selectors.EVENT_READ, (pair[1], time.perf_counter_ns()))
            client.sendall(pair[0])

        for client in arm.connections:
            selector.register(client, selectors.EVENT_READ)
            say_next(client)
        while selector.get_map():
            if not (events := selector.select(_PATIENCE)):
                raise RuntimeError(f"{arm.name}: no reply in {_PATIENCE:g} s")
            for key, _ in events:
                reply = key.fileobj.recv(4096)  # type: ignore[union-attr] # replies are short, and come in one piece
                expected, since = key.data
                if not (reply.startswith(expected) and reply.endswith(arm.end)):
                    raise RuntimeError(f"{arm.name}: {reply!a} instead of {expected!a}")
                durations.append(time.perf_counter_ns() - since)
                say_next(key.fileobj)  # type: ignore[arg-type]
    return durations


def measure(arm: Exchange, count: int, name_server_pids: Sequence[int]) -> Round:
    """Return what ``count`` exchanges cost."""
    pids = arm.pids()
    before, dns_before = process.usage(pids), process.usage(name_server_pids)
    begun = time.perf_counter_ns()
    durations = exchange(arm, count)
    seconds = (time.perf_counter_ns() - begun) / 1e9
    used, dns = process.usage(pids).since(before), process.usage(name_server_pids).since(dns_before)
    found = Latencies(durations)
    return Round(
        count=count,
        cpu_us=used.cpu_ns / count / 1000,
        user_ns=used.user_ns,
        system_ns=used.system_ns,
        name_server_us=dns.cpu_ns / count / 1000,
        rate=count / seconds,
        p50_us=found.percentile(50),
        p99_us=found.percentile(99),
    )


def compare(arms: Sequence[Exchange], count: int, each: int, name_server_pids: Sequence[int]) -> Comparison:
    """Measure the arms in ``count`` interleaved rounds of ``each`` exchanges; a tenth of one before is not counted."""
    found: dict[str, list[Round]] = {arm.name: [] for arm in arms}

    def one_round(number: int, arm: Exchange) -> None:
        report.progress(f"round {number + 1} of {count}: {arm.name}")
        found[arm.name].append(measure(arm, each, name_server_pids))

    interrupted = rounds.interleave(arms, 1, lambda _, arm: exchange(arm, max(1, each // 10)))
    interrupted = interrupted or rounds.interleave(arms, count, one_round)
    report.progress_end()
    return Comparison(found, interrupted)


def lookups(*, count: int, each: int, clients: int) -> Comparison:
    """Measure lookups over TCP: cached, of names never asked for before, and of a server that does not look at them.

    The servers have the first CPU, this process and the name server the others. Raises `bench.servers.MissingError`
    without dnsmasq, `RuntimeError` when something does not come up or answers wrongly.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(beside_servers())
        dns = stack.enter_context(servers.running(name_server()))

        def arm(name: str, server: servers.Arm, requests: Requests) -> Exchange:
            up = stack.enter_context(servers.running(server, cpus=machine.server_cpus()))
            connected = [stack.enter_context(socket.create_connection(up.targets[0])) for _ in range(clients)]
            return Exchange(name, connected, requests, b",", lambda: up.pids)

        known = (f"known{number % KNOWN}.example" for number in itertools.count())
        new = (f"new{number}.example" for number in itertools.count())
        arms = [
            arm(BASE, _control(), _lookups(itertools.repeat("known0.example"), NOT_FOUND)),
            arm("cached", relay(dns.targets[0]), _lookups(known, NULL_MX)),
            arm("uncached", relay(dns.targets[0]), _lookups(new, NOT_FOUND)),
        ]
        exchange(arms[1], KNOWN)
        return compare(arms, count, each, dns.pids)


def rows_of(found: Comparison, base: str) -> list[list[str]]:
    """Return the rows of the table under `HEAD`; ``base`` is what ratios refer to."""
    rows = []
    for name, series in found.rounds.items():
        cpu, share = rounds.spread_of(series, "cpu_us"), rounds.user_share(series)
        user = cpu.median * share if cpu and share is not None else None
        rows.append(
            [
                name,
                report.with_spread(cpu),
                report.number(user),
                report.number(cpu.median - user if cpu and user is not None else None),
                report.with_spread(rounds.cpu_ratio(series, found.rounds[base]), 2),
                report.number(1e6 / cpu.median if cpu else None, 0),
                *(report.number(rounds.median_of(series, field), 0) for field in ("rate", "p50_us", "p99_us")),
                report.number(rounds.median_of(series, "name_server_us")),
            ]
        )
    return rows


def _lookups(keys: Iterator[str], reply: bytes) -> Requests:
    for key in keys:
        request = f"nullmx someone@{key}".encode()
        yield b"%d:%b," % (len(request), request), reply


@contextlib.contextmanager
def beside_servers() -> Iterator[None]:
    """Have this process, and what it starts without a CPU of its own, run where the servers do not."""
    if sys.platform != "linux":
        yield
        return
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, machine.other_cpus())
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


def relay(resolver: tuple[str, int]) -> servers.Arm:
    """Return `nullsmtpd relay`, asking this name server."""
    host, port = resolver

    def command(ports: list[int], directory: Path) -> list[str]:
        options = ["--listen", f"127.0.0.1:{ports[0]}", "--resolver", f"{host}:{port}"]
        return [sys.executable, "-m", "nullsmtpd", "relay", *options]

    return servers.Arm("relay", "nullsmtpd relay", command)


def _control() -> servers.Arm:
    # -P: the directory of relay_control.py has modules of this package in it, which are none of its business.
    def command(ports: list[int], directory: Path) -> list[str]:
        return [sys.executable, "-P", str(_CONTROL), str(ports[0]), str(servers.BACKLOG)]

    return servers.Arm(BASE, "uvloop, the same reply to everything", command)


def name_server() -> servers.Arm:
    """Return dnsmasq: ``null.example``, ``known0.example`` and so on have a null MX, ``plain.example`` takes mail."""

    def command(ports: list[int], directory: Path) -> list[str]:
        program = shutil.which("dnsmasq", path=os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin")
        if program is None:
            raise servers.MissingError("no dnsmasq (Debian package dnsmasq-base)")
        nulls = ["null.example", *(f"known{number}.example" for number in range(KNOWN))]
        lines = ["no-resolv", "no-hosts", "bind-interfaces", "listen-address=127.0.0.1", f"pid-file={directory}/pid"]
        lines += [
            f"port={ports[0]}",
            "local=/example/",
            "local-ttl=3600",
            *(f"mx-host={name},.,0" for name in nulls),
        ]
        lines += ["mx-host=plain.example,mail.example,10", "host-record=mail.example,127.0.0.1"]
        (directory / "dnsmasq.conf").write_text("\n".join(lines) + "\n")
        return [program, "--keep-in-foreground", "--log-facility=-", f"--conf-file={directory}/dnsmasq.conf"]

    return servers.Arm("dnsmasq", "dnsmasq", command)
