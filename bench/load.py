"""How a server answers under load: the command ``load``."""

import argparse
import contextlib
import ipaddress
import socket
import time
from collections import Counter

from bench import client, report, system
from bench.client import Plan, Run
from bench.measure import number, percentiles
from bench.outcomes import DIALOGUE, GREETING, Outcome
from bench.report import Report
from nullsmtpd.cli.arguments import shown
from nullsmtpd.runtime.sockets import parse_address

#: Beyond this share of a CPU the generator, not the server, decides what is measured.
BUSY = 0.9

#: Open loop, in milliseconds: when one in a hundred connections starts later, the generator could not keep up.
LATE_MS = 5.0

_PERCENTILES = {f"p{percent:g}": percent for percent in (50, 90, 99, 99.9)} | {"max": 100}
_MOST_OPEN = 16384  # open loop: an overloaded server must not fill the memory


def resolve(text: str, *, allow_any: bool) -> tuple[str, int]:
    """Return the literal address and the port of ``HOST:PORT`` or ``[v6]:PORT``, the first address of a name.

    Raises `ValueError` for another notation, a name without an address, and, unless ``allow_any``, for an address that
    is not this host's loopback.
    """
    host, port = None, 0
    with contextlib.suppress(ValueError):
        host, port = parse_address(text)
    if host is None or not port:
        raise ValueError(f"{shown(text)}: give HOST:PORT or [IPv6]:PORT, with a port from 1 to 65535")
    try:
        address = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    except (socket.gaierror, UnicodeError) as error:  # UnicodeError: a label of more than 63 octets
        raise ValueError(f"{shown(host)}: {getattr(error, 'strerror', 'not a host name')}") from None
    if not allow_any and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        raise ValueError(
            f"{text} is {address}, not this host's loopback; add --yes-i-run-this-server if it is yours to load"
        )
    return address, port


def load(options: argparse.Namespace) -> Report:
    """Open connections to a server and report how it answers."""
    if options.clients and options.rate:
        raise ValueError("--clients is a closed loop, --rate an open one: give one of them")
    target = resolve(options.target, allow_any=options.yes_i_run_this_server)
    clients = 0 if options.rate else (options.clients or 64)
    limit = system.need_files(clients or 1, "--clients" if clients else "--rate")
    plan = Plan(
        targets=(target,),
        clients=clients,
        rate=options.rate or 0.0,
        connections=options.connections,
        seconds=options.duration,
        script=DIALOGUE if options.dialogue else GREETING,
        timeout=options.timeout,
        max_open=min(_MOST_OPEN, limit),
    )
    before, begun = system.kernel_counters(), time.monotonic()

    def show(outcomes: Counter[Outcome]) -> None:
        seconds = time.monotonic() - begun
        counts = ", ".join(f"{outcome} {count:,}" for outcome, count in outcomes.most_common())
        left = max(0.0, plan.seconds - seconds)
        report.progress(f"{outcomes.total() / seconds:,.0f}/s: {counts or 'nothing yet'}; {left:.0f} s left")

    tally = client.run(plan, show)
    kernel = {name: value - before[name] for name, value in system.kernel_counters().items()}
    return _report(plan, tally, kernel, options.target)


def _report(plan: Plan, tally: Run, kernel: dict[str, int], target: str) -> Report:
    seconds = tally.window
    kind = f"{plan.clients} clients in a closed loop" if plan.clients else f"{plan.rate:,g} connections a second"
    what = "EHLO, MAIL and QUIT" if plan.script == DIALOGUE else "greeting only"
    started, answered = tally.started / seconds, tally.answered / seconds
    outcomes = {str(outcome): count for outcome, count in tally.outcomes.most_common()}
    failures = []
    if tally.gave_up:
        failures.append(f"stopped after a second in which no connection was answered: {', '.join(outcomes)}")
    elif tally.lost and not tally.interrupted:
        failures.append(f"{tally.lost:,} of {tally.started:,} connections did not get the whole line")
    if unfinished := tally.started - tally.outcomes.total():
        outcomes["unfinished"] = unfinished
    times = {"time to connect": tally.connect, "time to first octet": tally.first, "time to FIN": tally.fin}
    if plan.rate:
        times["late start"] = tally.late
    columns = ["count", *_PERCENTILES]
    ms = {name: [len(values), *percentiles(values, *_PERCENTILES.values())] for name, values in times.items()}
    limits = []  # why the figures may be the generator's rather than the server's
    if tally.cpu_share > BUSY:
        limits.append(f"it used {tally.cpu_share:.0%} of a CPU")
    if tally.late_ms > LATE_MS:
        limits.append(f"1 % of the connections started {tally.late_ms:.1f} ms late or later")
    if tally.outcomes[Outcome.FAILED]:
        limits.append(f"connect() failed with {', '.join(sorted(tally.errors))}")
    return Report(
        before=[
            f"{target}: {kind}, {what}, {seconds:.2f} s",
            f"started {started:,.1f}/s, answered {answered:,.1f}/s",
            "",
            *(f"  {name:16} {count:>10,}" for name, count in outcomes.items()),
            "",
        ],
        head=["ms", *columns],
        rows=[[name, f"{count:,}", *map(number, row)] for name, (count, *row) in ms.items()],
        notes=[
            f"The generator used {tally.cpu_share:.0%} of a CPU" + (f": {'; '.join(limits)}." if limits else "."),
            "This host's kernel: " + ", ".join(f"{name} {count}" for name, count in kernel.items()) + ".",
        ],
        record={
            "target": target,
            "unit": "dialogue" if plan.script == DIALOGUE else "greeting",
            "offered": {"clients": plan.clients} if plan.clients else {"rate": plan.rate},
            "seconds": seconds,
            "started": tally.started,
            "lost": tally.lost,
            "per_second": {"started": started, "answered": answered},
            "outcomes": outcomes,
            "errors": tally.errors,
            "ms": {name: dict(zip(columns, row, strict=True)) for name, row in ms.items()},
            "generator": {"cpu_share": tally.cpu_share, "limits": limits},
            "kernel": kernel,
        },
        failures=failures,
        interrupted=tally.interrupted,
    )
