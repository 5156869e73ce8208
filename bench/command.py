"""The six commands: from their arguments to a measurement and back to a report."""

import argparse
import json
import os
import signal
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from bench import compare, footprint, load, machine, relay, relay_rcpt, report, rounds, servers, soak, sweep
from bench.client import DIALOGUE, Plan
from bench.latency import PERCENTILES

__all__ = ["run"]

# What `compare` measures unless it is told otherwise: from what a host sees in a quiet hour to a flood.
_RATES = "50,200,1000,4000,closed"
_DIALOGUE_RATES = "200,closed"
_ARMS = ["nullsmtpd", "nginx", "c-loop", "uvloop"]

#: What a shell reports for a program that Ctrl-C ended.
INTERRUPTED = 130

_LOAD_EXAMPLES = """examples:
  python -m bench load 127.0.0.1:25                                        64 clients for 10 s, each after its last
  python -m bench load 127.0.0.1:25 --rate 2000                            2,000 a second, come what may
  python -m bench load 127.0.0.1:25 --clients 4000 --connections 4000      a burst: all connect before any is read
  python -m bench load 127.0.0.1:25 --dialogue                             EHLO, MAIL and QUIT, for --mode mail
"""


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and examples as they are written."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0 done, 1 not possible or not passed, 2 usage, 130 interrupted.

    Raises KeyboardInterrupt if there was nothing to report yet.
    """
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _end)
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except (load.NotLoopbackError, ValueError) as error:
        return _complain(str(error), 2)
    except (OSError, RuntimeError, servers.MissingError) as error:
        return _complain(str(error), 1)
    finally:
        report.progress_end()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Load and cost harness of nullsmtpd.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_load(commands)
    _add_compare(commands)
    _add_sweep(commands)
    _add_footprint(commands)
    _add_soak(commands)
    _add_relay(commands)
    return parser


_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no other name


def _add(
    commands: _Commands, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, formatter_class=_Help)
    parser.set_defaults(run=run)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too, unrounded")
    return parser


def _add_load(commands: _Commands) -> None:
    parser = _add(commands, "load", _load, "Open connections to a server and report how it answers.")
    parser.epilog = _LOAD_EXAMPLES
    parser.add_argument("target", metavar="HOST:PORT", help="loopback, unless --yes-i-run-this-server")
    parser.add_argument("--clients", type=_count, metavar="N", help="closed loop of N clients (the default, with 64)")
    parser.add_argument("--rate", type=_positive, metavar="R", help="open loop: R connections a second, come what may")
    parser.add_argument("--duration", type=_positive, default=10.0, metavar="S", help="seconds of starting connections")
    parser.add_argument("--connections", type=_count, default=1_000_000, metavar="N", help="the most to start")
    parser.add_argument("--early", type=_fraction, default=0.0, metavar="SHARE", help="share that speaks first, 0 to 1")
    parser.add_argument("--dialogue", action="store_true", help="EHLO, MAIL and QUIT, each after a reply: one unit")
    parser.add_argument("--timeout", type=_positive, default=10.0, metavar="S", help="seconds for one connection")
    parser.add_argument("--sources", type=_count, default=16, metavar="N", help="IPv4 loopback: addresses to come from")
    parser.add_argument("--processes", type=_count, default=load.default_processes(), metavar="N", help="generators")
    parser.add_argument("--expect", default="521", metavar="TEXT", help="what the reply, to MAIL if any, begins with")
    parser.add_argument("--yes-i-run-this-server", action="store_true", help="allow a target other than loopback")


def _add_compare(commands: _Commands) -> None:
    text = "Measure what a connection costs nullsmtpd and other servers, at several rates."
    parser = _add(commands, "compare", _compare, text)
    parser.add_argument(
        "--rates", type=_rates, metavar="R,R", help=f"a second, or `closed` for a closed loop; without, {_RATES}"
    )
    parser.add_argument("--rounds", type=_count, default=10, metavar="N", help="interleaved rounds")
    parser.add_argument("--seconds", type=_positive, default=3.0, metavar="S", help="of each measurement")
    parser.add_argument("--clients", type=_count, default=64, metavar="N", help="of the closed loop")
    parser.add_argument("--arms", type=_words, metavar="A,B", help="which servers, by --list; without, see there")
    parser.add_argument("--list", action="store_true", help="name the servers and what is missing, and exit")
    parser.add_argument("--base", metavar="ARM", help="what ratios refer to; without, nginx, or smtp-sink")
    parser.add_argument("--dialogue", action="store_true", help="instead, EHLO, MAIL and QUIT: --mode mail, smtp-sink")
    parser.add_argument("--linger", type=_lingers, default=[], metavar="S,S", help="also nullsmtpd with this --linger")
    parser.add_argument(
        "--lingering", type=_counts, default=[], metavar="N,N", help="also nullsmtpd with this many idle clients"
    )
    parser.add_argument(
        "--addresses", type=_numbers, default=[], metavar="N,N", help="also nullsmtpd listening on this many addresses"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="write CPU time by rate there, as SVG")


def _add_sweep(commands: _Commands) -> None:
    parser = _add(commands, "sweep", _sweep, "Measure how the cost of a connection grows as the work grows.")
    _add_rounds(parser, 10)
    parser.add_argument("--only", type=_words, default=list(_PARTS), metavar="A,B", help="of " + ",".join(_PARTS))
    parser.add_argument("--arm", choices=servers.ARMS, default="nullsmtpd", metavar="ARM", help="for the rate alone")
    parser.add_argument("--first-rate", type=_positive, default=500.0, metavar="R", help="connections a second")
    parser.add_argument("--factor", type=_positive, default=1.4, metavar="X", help="from one rate to the next")
    parser.add_argument("--step", type=_positive, default=5.0, metavar="S", help="seconds of each rate")
    parser.add_argument("--steps", type=_count, default=20, metavar="N", help="the most rates to offer")
    parser.add_argument("--lingering", type=_counts, default=list(sweep.LINGERING), metavar="N,N", help="sockets")
    parser.add_argument("--addresses", type=_counts, default=list(sweep.ADDRESSES), metavar="N,N", help="to listen on")
    parser.add_argument("--workers", type=_counts, default=list(sweep.WORKERS), metavar="N,N", help="processes")


def _add_footprint(commands: _Commands) -> None:
    parser = _add(commands, "footprint", _footprint, "Measure what a server costs while nobody asks.")
    parser.add_argument("--starts", type=_count, default=10, metavar="N", help="of each server, interleaved")
    parser.add_argument("--idle", type=_positive, default=30.0, metavar="S", help="seconds to watch")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")


def _add_soak(commands: _Commands) -> None:
    parser = _add(commands, "soak", _soak, "Send clients of every habit; fail on a lost line or on growth.")
    parser.add_argument("--duration", type=_positive, default=300.0, metavar="S", help="seconds")
    parser.add_argument("--rate", type=_positive, default=500.0, metavar="R", help="clients a second")
    one_line = [name for name, arm in servers.ARMS.items() if not arm.commands]  # the clients here say no QUIT
    parser.add_argument("--arm", choices=one_line, default="nullsmtpd", metavar="ARM", help="which server")


def _add_relay(commands: _Commands) -> None:
    parser = _add(commands, "relay", _relay, "Measure what a lookup costs `nullsmtpd relay`; with --rcpt, Postfix.")
    parser.add_argument("--rounds", type=_count, default=10, metavar="N", help="interleaved rounds")
    parser.add_argument("--each", type=_count, default=5000, metavar="N", help="lookups, or recipients, a round")
    parser.add_argument("--clients", type=_count, default=8, metavar="N", help="closed-loop clients")
    parser.add_argument("--rcpt", action="store_true", help="a RCPT to Postfix, without and with a look at DNS; root")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")


def _add_rounds(parser: argparse.ArgumentParser, count: int) -> None:
    parser.add_argument("--rounds", type=_count, default=count, metavar="N", help="interleaved rounds")
    parser.add_argument("--connections", type=_count, default=4000, metavar="N", help="connections a round")
    parser.add_argument("--clients", type=_count, default=64, metavar="N", help="closed-loop clients")
    parser.add_argument(
        "--rate", type=_positive, metavar="R", help="an open loop instead: the same load for every server"
    )


def _round_plan(options: argparse.Namespace) -> Plan:
    return Plan(
        targets=(),
        clients=0 if options.rate else options.clients,
        rate=options.rate or 0.0,
        connections=options.connections,
        seconds=60.0,
        sources=16,
        max_open=load.open_limit(),
    )


def _load(options: argparse.Namespace) -> int:
    if options.clients and options.rate:
        raise ValueError("--clients is a closed loop, --rate an open one: give one of them")
    if options.dialogue and options.early:
        raise ValueError("with --dialogue clients wait for the greeting, with --early they do not: give one of them")
    target = load.resolve(options.target, allow_any=options.yes_i_run_this_server)
    clients = 0 if options.rate else (options.clients or 64)
    on_loopback4 = target.host.startswith("127.") and sys.platform == "linux"
    plan = Plan(
        targets=((target.host, target.port),),
        family=target.family,
        clients=clients,
        rate=options.rate or 0.0,
        connections=options.connections,
        seconds=options.duration,
        early=options.early,
        commands=DIALOGUE if options.dialogue else (),
        sources=min(options.sources, 254) if on_loopback4 and options.sources > 1 else 0,
        timeout=options.timeout,
        expect=servers.refused_at_mail(options.expect) if options.dialogue else (options.expect.encode("ascii"),),
        max_open=load.open_limit(),
    )
    before = machine.kernel_counters()
    with load.generators(options.processes) as group:
        tally, interrupted = group.run(plan, lambda text: report.progress(f"{options.target}: {text}"))
    report.progress_end()
    kernel = {name: value - before[name] for name, value in machine.kernel_counters().items()}
    found = load.findings(plan, tally, kernel)
    print(_load_text(options.target, found))
    return _done(options, {"target": options.target, **found}, interrupted=interrupted)


def _load_text(target: str, found: dict[str, Any]) -> str:
    lines = [f"{target}: {found['mode']} loop, {_offered(found)}, unit: {found['unit']}"]
    lines.append(
        f"started {found['started']:,} ({report.number(found['started_rate'])}/s), completed {found['completed']:,} "
        f"({report.number(found['completed_rate'])}/s) in {found['seconds']:.2f} s"
    )
    seen = {name: count for name, count in found["outcomes"].items() if count}
    width = max(map(len, seen), default=0)
    lines += ["", *(f"  {name:{width}} {count:>10,}" for name, count in seen.items())]
    columns = ["count", *(f"p{percent:g}" for percent in PERCENTILES), "max"]
    named = {"time to connect": "connect_us", "time to first octet": "first_octet_us", "time to FIN": "fin_us"}
    rows = [
        [title, *(report.number(found[key][column], 0 if column == "count" else 1) for column in columns)]
        for title, key in named.items()
    ]
    lines += ["", report.table(["µs", *columns], rows), ""]
    generator = found["generator"]
    lines.append(
        f"generator: busiest process {generator['cpu_share']:.0%} of a CPU; "
        + ("it was the limit: " + "; ".join(generator["because"]) if generator["was_the_limit"] else "not the limit")
    )
    if found["kernel"]:
        lines.append("kernel, whole host: " + ", ".join(f"{name} {count}" for name, count in found["kernel"].items()))
    return "\n".join(lines)


def _offered(found: dict[str, Any]) -> str:
    if found["mode"] == "closed":
        return f"{found['clients']} clients"
    return f"{found['offered_rate']:g} connections a second offered, times from the scheduled start"


def _compare(options: argparse.Namespace) -> int:
    known = servers.DIALOGUES if options.dialogue else servers.ARMS
    if options.list:
        rows = [[arm.name, arm.what, servers.is_there(arm) or "here"] for arm in known.values()]
        print(report.table(["arm", "what", "where"], rows, left=3))
        return 0
    names = options.arms or (list(known) if options.dialogue else _ARMS)
    _check_known(names, known)
    varied = servers.varied(options.linger, options.lingering, options.addresses)
    if options.dialogue and varied:
        raise ValueError("--linger, --lingering and --addresses vary mode close: leave out --dialogue")
    arms = [*(known[name] for name in names), *varied]
    base = options.base or ("smtp-sink" if options.dialogue else "nginx")
    _check_known([base] if options.base else [], [arm.name for arm in arms])
    _need_linux()
    if most := max((arm.held for arm in arms), default=0):
        _need_files(most + servers.ROOM, f"--lingering {most}")
    rates = options.rates or _rates(_DIALOGUE_RATES if options.dialogue else _RATES)
    settings = compare.Settings(base, rates, options.rounds, options.seconds, options.clients)
    result = compare.compare(arms, settings)
    if not result.rounds:
        missing = "".join(f"; missing: {name}: {why}" for name, why in result.missing.items())
        return _complain(f"nothing was measured{missing}", INTERRUPTED if result.interrupted else 1)
    rows = compare.rows_of(result)
    facts = machine.describe()
    notes = [*compare.notes_of(result), machine.one_line(facts)]
    print("\n".join([report.table(compare.HEAD, rows, left=2), "", *(textwrap.fill(note, 80) for note in notes)]))
    if options.markdown:
        options.markdown.write_text(_markdown(compare.HEAD, rows, notes))
    if options.chart:
        title = f"CPU time to answer one {'dialogue' if options.dialogue else 'connection'}, µs, by rate"
        note = f"nullsmtpd {facts['commit']}, {facts['kernel']}, {facts['cpu']}, Python {facts['python']}"
        options.chart.write_text(report.chart(title, note, compare.series_of(result)))
    record = {"unit": "dialogue" if options.dialogue else "connection", **result.record()}
    return _done(options, record, interrupted=result.interrupted, passed=not result.lost)


_PARTS = ("rate", "lingering", "addresses", "workers")


def _sweep(options: argparse.Namespace) -> int:
    _check_known(options.only, _PARTS)
    _need_linux()
    record: dict[str, object] = {}
    interrupted = False
    plan = _round_plan(options)
    if "rate" in options.only:
        arm = servers.ARMS[options.arm]
        arm.needs()
        steps, interrupted = sweep.find_knee(
            arm, first=options.first_rate, factor=options.factor, seconds=options.step, most=options.steps
        )
        record["rate"] = [step.record() for step in steps]
        print(_steps_text(arm.name, steps))
    works = {
        "lingering": [sweep.Point(held=held) for held in options.lingering],
        "addresses": [sweep.Point(addresses=addresses) for addresses in options.addresses],
        "workers": [sweep.Point(workers=workers) for workers in options.workers],
    }
    for part, points in works.items():
        if part in options.only and not interrupted:
            grown = sweep.grow(points, count=options.rounds, plan=plan)
            interrupted = grown.interrupted
            record[part] = grown.record()
            print(_growth_text(part, points, grown))
    return _done(options, record, interrupted=interrupted)


def _steps_text(name: str, steps: Sequence[sweep.Step]) -> str:
    head = [*("offered", "started", "completed", "unanswered"), *("p50 µs", "p99 µs", "CPU µs")]
    head += ["server CPU", "generator CPU"]
    rows = []
    for step in steps:
        whole = (step.offered, step.started, step.completed, step.unanswered, step.p50_us, step.p99_us)
        shares = [f"{step.server_cpu:.0%}", f"{step.generator_cpu:.0%}"]
        rows.append([*(report.number(value, 0) for value in whole), report.number(step.cpu_us), *shares])
    knee = steps[-1].reason if steps and steps[-1].reason else "not reached"
    return "\n".join([f"{name}, open loop, connections a second", report.table(head, rows), f"knee: {knee}", ""])


def _growth_text(part: str, points: Sequence[sweep.Point], grown: sweep.Growth) -> str:
    rows = []
    for point in points:
        size = f"{point.held if part == 'lingering' else getattr(point, part):,}"
        if point in grown.missing:
            rows.append([size, "missing: " + grown.missing[point], "", ""])
            continue
        series = grown.rounds.get(point, [])
        rate = rounds.spread_of(series, "rate")
        cells = [report.with_spread(rounds.spread_of(series, "cpu_us")), report.with_spread(grown.ratio(point), 3)]
        rows.append([size, *cells, report.number(rate.median if rate else None, 0)])
    return report.table([part, "CPU µs per connection", "ratio to the first", "per second"], rows) + "\n"


def _footprint(options: argparse.Namespace) -> int:
    _need_linux()
    found, missing, interrupted = footprint.footprint(starts=options.starts, idle=options.idle)
    if not found:
        raise KeyboardInterrupt
    head, rows = footprint.rows_of(found)
    notes = [
        f"Ratios: to {footprint.BASE}, start by start; medians (quartiles) of {options.starts} starts.",
        f"wake-ups: context switches in {options.idle:g} s without a client. nginx: master and worker together.",
        *footprint.worker_notes(found),
        "start: until a connection succeeds; of python, until its first statement.",
        *(f"missing: {name}: {why}" for name, why in missing.items()),
        machine.one_line(machine.describe()),
    ]
    print("\n".join([report.table(head, rows), "", *notes]))
    if options.markdown:
        options.markdown.write_text(_markdown(head, rows, notes))
    record = {"servers": {name: one.record() for name, one in found.items()}, "missing": missing}
    return _done(options, {"starts": options.starts, "idle_seconds": options.idle, **record}, interrupted=interrupted)


def _soak(options: argparse.Namespace) -> int:
    _need_linux()
    arm = servers.ARMS[options.arm]
    arm.needs()
    found = soak.soak(arm, duration=options.duration, rate=options.rate)
    rows = []
    for name in soak.BEHAVIOURS:
        lost = found.lost.get(name, Counter())
        instead = ", ".join(f"{what}: {count}" for what, count in lost.items()) or "-"
        rows.append([name, f"{found.clients[name]:,}", f"{lost.total():,}", instead])
    lines = [report.table(["behaviour", "clients", "failed", "instead"], rows), ""]
    memory = [sample.rss for sample in found.samples]
    if memory:
        lines.append(f"memory KiB: first {memory[0]:,}, highest {max(memory):,}, last {memory[-1]:,}")
    if found.descriptors:
        lines.append(f"descriptors: {found.descriptors[0]} before, {found.descriptors[1]} after")
    lines += [*(f"remark: {text}" for text in found.remarks), *(f"FAILED: {text}" for text in found.failures)]
    print("\n".join([*lines, *([] if found.failures or found.interrupted else ["passed"])]))
    record = {"arm": arm.name, "duration": options.duration, "rate": options.rate, **found.record()}
    return _done(options, record, interrupted=found.interrupted, passed=not found.failures)


def _relay(options: argparse.Namespace) -> int:
    _need_linux()
    if options.rcpt and not os.environ.get(relay_rcpt.INSIDE):
        return relay_rcpt.run_inside(sys.argv[1:])
    measure, base = (relay_rcpt.rcpt, relay_rcpt.BASE) if options.rcpt else (relay.lookups, relay.BASE)
    found = measure(count=options.rounds, each=options.each, clients=options.clients)
    if not all(found.rounds.values()):
        raise KeyboardInterrupt
    rows = relay.rows_of(found, base)
    whose = "all of Postfix and nullsmtpd relay, per RCPT" if options.rcpt else "the server, per lookup over TCP"
    notes = [
        f"CPU: of {whose}; median (quartiles) of {options.rounds} rounds of {options.each:,}. Ratio: to {base!r}.",
        f"per core: from the CPU time. per second, p50 and p99: of {options.clients} clients in a closed loop.",
        machine.one_line(machine.describe()),
    ]
    print("\n".join([report.table(relay.HEAD, rows), "", *notes]))
    if options.markdown:
        options.markdown.write_text(_markdown(relay.HEAD, rows, notes))
    settings = {"each": options.each, "clients": options.clients, "rcpt": options.rcpt}
    return _done(options, {"settings": settings, **found.record()}, interrupted=found.interrupted)


def _markdown(head: Sequence[str], rows: report.Rows, notes: Sequence[str]) -> str:
    return "\n".join([report.markdown(head, rows), *(f"{note}  " for note in notes), ""])


def _done(options: argparse.Namespace, record: dict[str, object], *, interrupted: bool, passed: bool = True) -> int:
    """Write the JSON file, say what Ctrl-C left out, and return the exit status."""
    if options.json:
        whole = {"machine": machine.describe(), "interrupted": interrupted, **record}
        options.json.write_text(json.dumps(whole, indent=1) + "\n")
    if interrupted:
        return _complain("interrupted: this is what there was until then", INTERRUPTED)
    return 0 if passed else 1


def _complain(text: str, status: int) -> int:
    sys.stderr.write(f"bench: {text}\n")
    return status


def _need_linux() -> None:
    if sys.platform != "linux":
        raise RuntimeError("what a process costs is read from /proc: Linux only; `load` runs anywhere")


def _need_files(count: int, why: str) -> None:
    if (limit := machine.raise_nofile()) < count:
        raise ValueError(f"{why} needs {count:,} open files, this system allows {limit:,}: raise `ulimit -Hn` first")


def _end(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!a} is not a whole number from 1")
    return int(text)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!a} is not a number above 0")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!a} is not a share from 0 to 1")
    return value


def _counts(text: str) -> list[int]:
    return [0 if part == "0" else _count(part) for part in text.split(",")]


def _rates(text: str) -> list[float]:
    return [compare.CLOSED if part == "closed" else _positive(part) for part in text.split(",")]


def _numbers(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _lingers(text: str) -> list[float]:
    return [0.0 if part == "0" else _positive(part) for part in text.split(",")]


def _words(text: str) -> list[str]:
    return text.split(",")


def _check_known(words: Sequence[str], known: Collection[str]) -> None:
    if unknown := [word for word in words if word not in known]:
        raise ValueError(f"unknown {', '.join(unknown)}; there are {', '.join(known)}")
