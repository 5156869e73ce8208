"""The command ``python -m bench``: from the shell to a measurement and back to a report."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from bench import compare, load, machine, report, servers
from bench.client import Plan
from bench.latency import PERCENTILES

__all__ = ["main"]

#: What a shell reports for a program that Ctrl-C ended.
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0 done, 1 not possible or not passed, 2 usage, 130 interrupted."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _end)
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except KeyboardInterrupt:
        report.progress_end()
        return _complain("interrupted before there was anything to report", INTERRUPTED)
    except (load.NotLoopbackError, ValueError) as error:
        return _complain(str(error), 2)
    except (OSError, RuntimeError) as error:
        report.progress_end()
        return _complain(str(error), 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Load and cost harness of nullsmtpd.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_load(commands)
    _add_compare(commands)
    return parser


_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no other name


def _add(
    commands: _Commands, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too, unrounded")
    return parser


def _add_load(commands: _Commands) -> None:
    parser = _add(commands, "load", _load, "Open connections to a server and report how it answers.")
    parser.add_argument("target", metavar="HOST:PORT", help="loopback, unless --yes-i-run-this-server")
    parser.add_argument("--clients", type=_count, metavar="N", help="closed loop of N clients (the default, with 64)")
    parser.add_argument("--rate", type=_positive, metavar="R", help="open loop: R connections a second, come what may")
    parser.add_argument("--duration", type=_positive, default=10.0, metavar="S", help="seconds of starting connections")
    parser.add_argument("--connections", type=_count, default=1_000_000, metavar="N", help="the most to start")
    parser.add_argument("--early", type=_fraction, default=0.0, metavar="SHARE", help="share that speaks first, 0 to 1")
    parser.add_argument("--timeout", type=_positive, default=10.0, metavar="S", help="seconds for one connection")
    parser.add_argument("--sources", type=_count, default=16, metavar="N", help="IPv4 loopback: addresses to come from")
    parser.add_argument("--processes", type=_count, default=compare.generator_count(), metavar="N", help="generators")
    parser.add_argument("--max-open", type=_count, default=16384, metavar="N", help="connections at once, per process")
    parser.add_argument("--expect", default="521", metavar="TEXT", help="what a right reply begins with")
    parser.add_argument("--yes-i-run-this-server", action="store_true", help="allow a target other than loopback")


def _add_compare(commands: _Commands) -> None:
    parser = _add(commands, "compare", _compare, "Measure what a connection costs nullsmtpd and other servers.")
    _add_rounds(parser, 30)
    parser.add_argument("--arms", type=_arms, default=list(servers.ARMS), metavar="A,B", help="which, by --list")
    parser.add_argument("--list", action="store_true", help="name the servers and what is missing, and exit")
    parser.add_argument("--base", choices=servers.ARMS, default="nginx", metavar="ARM", help="what ratios refer to")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the chart there")


def _add_rounds(parser: argparse.ArgumentParser, count: int) -> None:
    parser.add_argument("--rounds", type=_count, default=count, metavar="N", help="interleaved rounds")
    parser.add_argument("--connections", type=_count, default=4000, metavar="N", help="connections a round")
    parser.add_argument("--clients", type=_count, default=64, metavar="N", help="closed-loop clients")
    parser.add_argument("--early", type=_fraction, default=0.0, metavar="SHARE", help="share that speaks first, 0 to 1")
    parser.add_argument("--seed", type=int, default=521, metavar="N", help="of the random order")


def _round_plan(options: argparse.Namespace) -> Plan:
    return Plan(
        targets=(),
        clients=options.clients,
        connections=options.connections,
        early=options.early,
        seconds=60.0,
        sources=16,
        max_open=load.open_limit(options.clients),
    )


def _load(options: argparse.Namespace) -> int:
    if options.clients and options.rate:
        raise ValueError("--clients is a closed loop, --rate an open one: give one of them")
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
        sources=min(options.sources, 254) if on_loopback4 and options.sources > 1 else 0,
        timeout=options.timeout,
        expect=options.expect.encode("ascii"),
        max_open=load.open_limit(options.max_open),
    )
    before = machine.kernel_counters()
    with load.generators(min(options.processes, clients or options.processes)) as group:
        tally, interrupted = group.run(plan, lambda text: report.progress(f"{options.target}: {text}"))
    report.progress_end()
    kernel = {name: value - before[name] for name, value in machine.kernel_counters().items()}
    found = load.findings(plan, tally, kernel)
    print(_load_text(options.target, found))
    return _done(options, {"target": options.target, **found}, interrupted=interrupted)


def _load_text(target: str, found: dict[str, Any]) -> str:
    lines = [f"{target}: {found['mode']} loop, " + _offered(found)]
    lines.append(
        f"started {found['started']:,} ({report.number(found['started_rate'])}/s), completed {found['completed']:,} "
        f"({report.number(found['completed_rate'])}/s) in {found['seconds']:.2f} s"
    )
    outcomes = found["outcomes"]
    lines += ["", *(f"  {name:18} {count:>10,}" for name, count in outcomes.items() if count)]
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
    if options.list:
        rows = [[arm.name, arm.what, servers.is_there(arm) or "here"] for arm in servers.ARMS.values()]
        print(report.table(["arm", "what", "where"], rows))
        return 0
    _need_linux()
    result = compare.compare(options.arms, count=options.rounds, plan=_round_plan(options), seed=options.seed)
    if not any(result.rounds.values()):
        return _complain("nothing was measured", INTERRUPTED if result.interrupted else 1)
    base = options.base if result.rounds.get(options.base) else next(iter(result.rounds))
    head, rows = compare.rows_of(result, base)
    facts = machine.one_line(machine.describe())
    notes = compare.notes_of(result)
    print("\n".join([report.table(head, rows), "", *notes, facts]))
    if options.markdown:
        options.markdown.write_text(
            "\n".join([report.markdown(head, rows), *(f"{note}  " for note in [*notes, facts]), ""])
        )
    if options.svg:
        title = "CPU time to answer one connection"
        report.bars(options.svg, title, facts, compare.bars_of(result))
    settings = {"connections": options.connections, "clients": options.clients, "early": options.early}
    record = {"settings": {**settings, "seed": options.seed, "backlog": servers.BACKLOG}, **result.record()}
    return _done(options, record, interrupted=result.interrupted)


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


def _arms(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in servers.ARMS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; there are {', '.join(servers.ARMS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
