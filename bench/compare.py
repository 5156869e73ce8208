"""What a connection costs nullsmtpd, beside other servers that can say the same: interleaved rounds on one machine."""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

from bench import load, machine, report, rounds, servers
from bench.client import Plan
from bench.rounds import Round
from bench.spread import Spread

__all__ = ["Comparison", "bars_of", "compare", "footnotes_of", "notes_of", "rows_of"]

HEAD = ("server", "CPU µs", "user", "system", "ratio to {}", "switches", "per second", "p50 µs", "p99 µs", "RSS", "PSS")

#: Stands at the name of an arm that has a footnote.
_MARK = " *"


class Comparison(NamedTuple):
    """What came of it: every round of every arm, why arms are missing, and whether Ctrl-C ended it early.

    ``unit`` is what one connection was: "connection", or "dialogue".
    """

    unit: str
    rounds: dict[str, list[Round]]
    missing: dict[str, str]
    interrupted: bool

    def ratio(self, arm: str, base: str) -> Spread | None:
        """Return CPU time per connection of ``arm`` in relation to ``base``, taken round by round."""
        return rounds.cpu_ratio(self.rounds.get(arm, ()), self.rounds.get(base, ()))

    def record(self) -> dict[str, object]:
        """Return everything as JSON has it: the summary, the ratio of every pair, and the rounds themselves."""
        names = list(self.rounds)
        return {
            "unit": self.unit,
            "missing": self.missing,
            "arms": {name: _summary(self.rounds[name]) for name in names},
            "cpu_ratio": {
                name: {base: ratio._asdict() for base in names if base != name and (ratio := self.ratio(name, base))}
                for name in names
            },
            "rounds": {name: [one.record() for one in self.rounds[name]] for name in names},
        }


def compare(names: Sequence[str], *, count: int, plan: Plan) -> Comparison:
    """Measure the arms of these names in ``count`` interleaved rounds of ``plan`` each, targets left out.

    All servers run all the time, on the first CPU; an idle one costs nothing. The generators have the other CPUs. A
    round before the first, a tenth as long, is not counted. Raises `RuntimeError` if a server does not come up.
    """
    found, missing = servers.select(list(names))
    if plan.early:
        missing |= {
            arm.name: "its clients wait for a reply, those that speak first do not" for arm in found if arm.commands
        }
        found = [arm for arm in found if not arm.commands]
    results: dict[str, list[Round]] = {arm.name: [] for arm in found}
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(load.generators(load.default_processes(), machine.other_cpus()))
        up = [stack.enter_context(servers.running(arm, cpus=machine.server_cpus())) for arm in found]

        def one_round(number: int, server: servers.Server) -> None:
            report.progress(f"round {number + 1} of {count}: {server.arm.name}")
            results[server.arm.name].append(rounds.measure(server, group, plan))

        interrupted = rounds.warm_up(up, group, plan)
        interrupted = interrupted or rounds.interleave(up, count, one_round)
    report.progress_end()
    unit = "dialogue" if any(arm.name in servers.DIALOGUES for arm in found) else "connection"
    return Comparison(unit, results, missing, interrupted)


def rows_of(comparison: Comparison, base: str) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the table; ``base`` is the arm that ratios refer to."""
    rows = []
    for name, series in comparison.rounds.items():
        cpu, share = rounds.spread_of(series, "cpu_us"), rounds.user_share(series)
        user = cpu.median * share if cpu and share is not None else None
        rows.append(
            [
                _marked(name),
                report.with_spread(cpu),
                report.number(user),
                report.number(cpu.median - user if cpu and user is not None else None),
                report.with_spread(comparison.ratio(name, base), 2),
                report.number(rounds.median_of(series, "switches"), 3),
                report.number(rounds.median_of(series, "rate"), 0),
                report.number(rounds.median_of(series, "p50_us"), 0),
                report.number(rounds.median_of(series, "p99_us"), 0),
                report.number(max((one.peak_rss for one in series), default=None), 0),
                report.number(max((one.pss for one in series), default=None), 0),
            ]
        )
    return [title.format(base) for title in HEAD], rows


def bars_of(comparison: Comparison) -> list[report.Bar]:
    """Return what the chart shows, the cheapest first."""
    bars: list[report.Bar] = []
    for name, series in comparison.rounds.items():
        cpu, share = rounds.spread_of(series, "cpu_us"), rounds.user_share(series)
        if cpu:
            user = cpu.median * (share or 0.0)
            bars.append((_marked(name), user, cpu.median - user, cpu))
    return sorted(bars, key=lambda bar: bar[3].median)


def footnotes_of(comparison: Comparison) -> list[str]:
    """Return how arms are not quite like the others, for the table as for the chart."""
    return [f"{_MARK.strip()} {name} {text}" for name in comparison.rounds if (text := _footnote(name))]


def notes_of(comparison: Comparison) -> list[str]:
    """Return what a reader of the table must know beside it."""
    notes = [
        f"CPU: of the server, per {comparison.unit}; median (quartiles) of the rounds. Ratios: taken round by round.",
        f"switches: context switches per {comparison.unit}. Times: until the FIN. RSS: peak, PSS: highest seen; KiB.",
    ]
    if comparison.unit == "dialogue":
        notes.append("dialogue: greeting, EHLO, MAIL, QUIT, each after the reply to the one before, until the FIN.")
    notes += footnotes_of(comparison)
    notes += [f"missing: {name}: {why}" for name, why in comparison.missing.items()]
    for name, series in comparison.rounds.items():
        if lost := rounds.unanswered(series):
            notes.append(f"{name}: {lost} of {sum(one.started for one in series)} connections were not answered whole")
    if machine.other_cpus() == machine.server_cpus():
        notes.append("only one CPU: servers and generators had to share it, which makes every figure worse")
    busiest = max((one.generator_cpu for series in comparison.rounds.values() for one in series), default=0.0)
    if busiest > load.BUSY:
        notes.append(f"rates and times: the generator was the limit in some rounds (up to {busiest:.0%} of its CPU)")
    return notes


def _marked(name: str) -> str:
    return name + (_MARK if _footnote(name) else "")


def _footnote(name: str) -> str:
    return (servers.ARMS | servers.DIALOGUES)[name].footnote


def _summary(series: Sequence[Round]) -> dict[str, object]:
    names = ("cpu_us", "switches", "rate", "p50_us", "p99_us", "peak_rss", "pss", "generator_cpu")
    spreads = {name: rounds.spread_of(series, name) for name in names}
    return {
        "rounds": len(series),
        "started": sum(one.started for one in series),
        "unanswered": rounds.unanswered(series),
        "user_share": rounds.user_share(series),
    } | {name: found._asdict() if found else None for name, found in spreads.items()}
