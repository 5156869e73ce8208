"""The commands: from their arguments to a measurement and back to a report."""

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from bench import compare, footprint, load, relay, report, servers, soak, system
from bench.outcomes import DIALOGUE
from bench.report import Report
from nullsmtpd.cli.arguments import shown
from nullsmtpd.cli.command import STDERR, print_line

#: What a shell reports for a program that Ctrl-C ended.
INTERRUPTED = 130

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: No number here needs to be higher, and none then overflows.
HIGHEST = 1_000_000

_Number = TypeVar("_Number", int, float)
_T = TypeVar("_T")
_Add = Callable[..., argparse.Action]  # add_argument() of a parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(_complain(f"{message}; see --help", 2))


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults that are values."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if type(action.default) in {int, float, str} else action.help


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0 done, 1 lost lines or not possible, 2 usage, 130 interrupted.

    Raises KeyboardInterrupt if there was nothing to report yet.
    """
    whole = parser()
    options = whole.parse_args(arguments)
    if [] in vars(options).values():  # Python before 3.13 takes `--` after a flag's `=` for no value at all
        whole.error("`--` is not a value")
    for number in _ENDS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        found: Report = options.run(options)
        _ignore_interrupts()
        report.progress("")
        return _finish(options, found)
    except (ValueError, OSError, RuntimeError) as error:
        why = f"{error.filename or 'failed'}: {error.strerror}" if isinstance(error, OSError) else str(error)
        return _complain(why, 2 if isinstance(error, ValueError) else 1)
    finally:
        report.progress("")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    whole = _Parser(prog="python -m bench", description="Load and cost harness of nullsmtpd. Linux.")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    def add(run: Callable[[argparse.Namespace], Report], text: str, name: str = "") -> _Add:
        command = commands.add_parser(name or run.__name__, help=text, description=text, formatter_class=_Help)
        command.set_defaults(run=run)
        command.add_argument("--json", type=_file, metavar="FILE", help="write everything there too, unrounded")
        return command.add_argument

    option = add(load.load, "Open connections to a server and report how it answers.")
    option("target", metavar="HOST:PORT", help="loopback, unless --yes-i-run-this-server")
    option("--clients", type=_COUNT, metavar="N", help="closed loop of N clients (the default, with 64)")
    option("--rate", type=_POSITIVE, metavar="R", help="open loop: R connections a second")
    option("--duration", type=_POSITIVE, default=10.0, metavar="S", help="seconds of starting connections")
    option("--connections", type=_COUNT, default=HIGHEST, metavar="N", help="the most to start")
    option("--dialogue", action="store_true", help="EHLO, MAIL and QUIT, each after a reply: one unit")
    option("--timeout", type=_POSITIVE, default=10.0, metavar="S", help="seconds for one connection")
    option("--yes-i-run-this-server", action="store_true", help="allow a target other than loopback")

    arms = f"of {', '.join(servers.ARMS)}, and of nullsmtpd with {', '.join(f'{name}=N' for name in _VARIED)}"
    rates = "50,200,1000,4000,closed"  # from what a host sees in a quiet hour to a flood
    usual = ("compare", "nullsmtpd,nginx,c-loop,uvloop", rates, "nullsmtpd and other servers")
    shared = ("sweep", "instances=1,instances=2", "500,1000,2000,4000,8000,16000", "instances of nullsmtpd on one port")
    for name, default_arms, default_rates, what in (usual, shared):
        option = add(compare.compare, f"Measure what a connection costs {what}.", name)
        option("--arms", type=_several(_arm), default=default_arms, metavar="A,B", help=arms)
        option("--rates", type=_several(_rate), default=default_rates, metavar="R,R", help="a second, or `closed`")
        option("--rounds", type=_COUNT, default=10, metavar="N", help="interleaved rounds")
        option("--seconds", type=_POSITIVE, default=3.0, metavar="S", help="of each measurement")
        option("--clients", type=_COUNT, default=64, metavar="N", help="of the closed loop")
        if name == "compare":
            dialogues = [arm for arm in servers.ARMS.values() if arm.script is DIALOGUE]
            text = f"measure {', '.join(arm.name for arm in dialogues)}"
            option("--dialogue", dest="arms", action="store_const", const=dialogues, help=text)

    option = add(footprint.footprint, "Measure memory and start beside an empty uvloop server.")
    option("--starts", type=_COUNT, default=10, metavar="N", help="of each server, interleaved")
    option("--connections", type=_NATURAL, default=500, metavar="N", help="before memory is read")

    option = add(soak.soak, "Send clients of every behaviour; fail on a lost line or on growth.")
    option("--duration", type=_POSITIVE, default=300.0, metavar="S", help="seconds")
    option("--rate", type=_POSITIVE, default=500.0, metavar="R", help="clients a second")
    option("--arm", type=_arm, default="nullsmtpd", metavar="ARM", help="one of those of compare")

    option = add(relay.relay, "Measure what a lookup costs `nullsmtpd relay`.")
    option("--rounds", type=_COUNT, default=10, metavar="N", help="interleaved rounds")
    option("--each", type=_COUNT, default=5000, metavar="N", help="lookups a round")
    option("--clients", type=_FEW, default=8, metavar="N", help="of the closed loop")
    return whole


def _ignore_interrupts() -> None:
    """Have all that remains done, which takes seconds at most: to end servers, and to write the report."""
    for number in _ENDS:
        signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: object) -> NoReturn:
    _ignore_interrupts()
    raise KeyboardInterrupt


def _finish(options: argparse.Namespace, found: Report) -> int:
    """Write the files of the report, print it in any case, and return the exit status."""
    facts = system.describe()
    machine = ", ".join(f"{name} {value}" for name, value in facts.items())
    found = found._replace(notes=[*found.notes, f"Measured on: {machine}."])
    try:
        if options.json:
            table = {name: getattr(found, name) for name in ("head", "rows", "notes", "left")}
            whole = {"machine": facts, "interrupted": found.interrupted, **found.record, "report": table}
            options.json.write_text(json.dumps(whole, indent=1, default=vars) + "\n")
    finally:
        with contextlib.suppress(BrokenPipeError), os.fdopen(1, "w", errors="replace", closefd=False) as stdout:
            stdout.write(found.text() + "\n")
    for failure in found.failures:
        _complain(failure, 1)
    if found.interrupted:
        return _complain("interrupted: this is what there was until then", INTERRUPTED)
    return 1 if found.failures else 0


def _complain(text: str, status: int) -> int:
    return print_line(STDERR, f"bench: {' '.join(text.split())[:500]}", status)


def _file(text: str) -> Path:
    """Parse the name of a file that can be written when the measurement is over."""
    path = Path(text)
    with contextlib.suppress(OSError):  # a name that is too long
        if not path.is_dir() and os.access(path if path.exists() else path.parent, os.W_OK):
            return path
    raise argparse.ArgumentTypeError(f"cannot write to {text}")


def _number(low: _Number, high: float) -> Callable[[str], _Number]:
    """Return a parser for argparse of numbers of the type of ``low``, from ``low`` to ``high``."""
    convert = type(low)

    def parse(text: str) -> _Number:
        with contextlib.suppress(ValueError):  # int() also takes `1_0`, spaces, and digits of other scripts
            if set(text) <= set("0123456789.e+-") and low <= (value := convert(text)) <= high:
                return value
        kind = "whole number" if convert is int else "number"
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a {kind} from {low:g} to {high}")

    return parse


_COUNT = _number(1, HIGHEST)
_NATURAL = _number(0, HIGHEST)
_FEW = _number(1, 64)
_POSITIVE = _number(0.001, HIGHEST)

# What nullsmtpd may have more of than usual: clients that stay connected, addresses, processes on one port.
_VARIED = {"idle": _NATURAL, "addresses": _FEW, "instances": _FEW}


def _arm(text: str) -> servers.Arm:
    name, _, number = text.partition("=")
    if name in _VARIED:
        return servers.nullsmtpd(name=text, **{name: _VARIED[name](number)})
    if text not in servers.ARMS:
        raise argparse.ArgumentTypeError(f"unknown {shown(text)}; there are {', '.join((*servers.ARMS, *_VARIED))}")
    return servers.ARMS[text]


def _rate(text: str) -> float:
    return compare.CLOSED if text == "closed" else _POSITIVE(text)


def _several(parse: Callable[[str], _T]) -> Callable[[str], list[_T]]:
    """Return a parser of a comma-separated list, each value once."""
    return lambda text: list(dict.fromkeys(parse(part) for part in text.split(",")))
