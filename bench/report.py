"""What a person sees: tables for the terminal and for Markdown, a line of progress, and the chart."""

import html
import math
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.stats import Spread

#: Columns of a terminal that tables and notes fit.
WIDTH = 80

# The least figure of a chart: a server that has stopped takes no CPU time, and a logarithmic scale has no 0.
_LEAST = 0.01

# Okabe and Ito's colours, which colour-blind readers can tell apart; each is legible on white and on black.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

# The chart's background and text follow the reader's preference, whatever page embeds it.
_STYLE = """text { font: 13px sans-serif; fill: #1f2328 } .page { fill: #fff } .grid { stroke: #8888; stroke-width: 1 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .page { fill: #0d1117 } }"""


class Report(NamedTuple):
    """What a command has found: a table and what stands around it, and ``record``, the same for JSON, unrounded."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    record: Mapping[str, Any]
    before: Sequence[str] = ()
    left: int = 1  # columns of text, which are aligned to the left
    failures: Sequence[str] = ()  # why the exit status is 1
    interrupted: bool = False

    def text(self) -> str:
        """Return it for a terminal."""
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]

        def line(row: Sequence[str]) -> str:
            aligned = (str.ljust if number < self.left else str.rjust for number in range(len(row)))
            cells = (align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True))
            return "  ".join(cells).rstrip()

        table = [line(self.head), "  ".join("-" * width for width in widths), *map(line, self.rows), ""]
        return "\n".join([*self.before, *table, *(textwrap.fill(note, WIDTH) for note in self.notes)])

    def markdown(self) -> str:
        """Return table and notes as Markdown."""
        return f"{markdown_table(self.head, self.rows, self.left)}\n{textwrap.fill(' '.join(self.notes), 120)}\n"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 0) -> str:
    """Return a table in Markdown; its first ``left`` columns are text."""
    marks = ["---"] * left + ["---:"] * (len(head) - left)
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, marks, *rows))


def parts(path: Path, name: str) -> tuple[str, str, str]:
    """Return what stands before, in and after the marks of a block. Raises `ValueError` without them."""
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
    before, found, rest = (path.read_text(encoding="utf-8") if path.exists() else "").partition(begin)
    inside, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"{path} has no lines {begin.strip()} and {end.strip()}")
    return before + begin, inside, end + after


def number(value: float | None, most: int = 9) -> str:
    """Write a number with three significant digits, but at most ``most`` after the point; a dash for None."""
    if value is None:
        return "-"
    digits = 2 - int(f"{value:.2e}".partition("e")[2]) if value > 0 else 0  # of the rounded value: 9.996 is 10.0
    return f"{value:,.{min(max(digits, 0), most)}f}"


def with_spread(value: Spread | None, most: int = 9) -> str:
    """Write a median with its quartiles, each as `number` does: ``31.4 (30.9-32.0)``."""
    if value is None:
        return "-"
    return f"{number(value.median, most)} ({number(value.low, most)}-{number(value.high, most)})"


def progress(text: str) -> None:
    """Show what is going on, in place, if someone is watching; an empty text clears the line."""
    if sys.stderr.isatty():
        columns = os.get_terminal_size(sys.stderr.fileno()).columns or WIDTH
        sys.stderr.write(f"\r\x1b[K{text[: columns - 1]}")
        sys.stderr.flush()


def chart(title: str, note: str, series: Mapping[str, Mapping[float, Spread]]) -> str:
    """Return an SVG line chart, both scales logarithmic, so that equal ratios are equal distances.

    ``series`` has the figures of each server by rate. The rate 0 is a closed loop, which stands apart at the right.
    Vertical lines are quartiles.
    """
    width, height, left, right, top, bottom = 760, 430, 50, 20, 70, 60
    values = [edge for points in series.values() for one in points.values() for edge in (one.low, one.high)]
    rates = sorted({rate for points in series.values() for rate in points if rate})
    places = {rate: math.log10(rate / rates[0]) for rate in rates}
    places[0.0] = max(places.values(), default=0.0) + 0.6
    span = max(places[rate] for points in series.values() for rate in points) or 1.0
    low, high = math.log10(max(min(values), _LEAST) / 1.1), math.log10(max(*values, _LEAST) * 1.1)

    def x(rate: float) -> float:
        return left + 25 + (width - left - right - 60) * places[rate] / span

    def y(value: float) -> float:
        return top + (height - top - bottom) * (high - math.log10(max(value, _LEAST))) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}"/>',
        f'<text x="{left}" y="24" style="font-size: 16px">{html.escape(title)}</text>',
        f'<text x="{left}" y="{height - 10}" style="font-size: 11px">{html.escape(note)}</text>',
    ]
    for tick in (factor * 10**power for power in range(-1, 6) for factor in (1, 2, 5)):
        if low <= math.log10(tick) <= high:
            parts.append(f'<path class="grid" d="M{left} {y(tick):.1f}H{width - right}"/>')
            parts.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for rate in [*rates, *([0.0] if any(0.0 in points for points in series.values()) else [])]:
        name = f"{rate:,g}/s" if rate else "closed loop"
        parts.append(f'<text x="{x(rate):.1f}" y="{height - bottom + 22}" text-anchor="middle">{name}</text>')
    for number, (name, points) in enumerate(series.items()):
        colour, legend = _COLOURS[number % len(_COLOURS)], left + number * (width - left) / len(series)
        path = " ".join(f"{x(rate):.1f},{y(points[rate].median):.1f}" for rate in rates if rate in points)
        parts.append(f'<g stroke="{colour}" stroke-width="2" fill="{colour}">')
        parts.append(f'<polyline points="{path}" fill="none"/><circle cx="{legend:.0f}" cy="45" r="4"/>')
        for rate, one in points.items():
            parts.append(f'<circle cx="{x(rate):.1f}" cy="{y(one.median):.1f}" r="3"/>')
            parts.append(f'<path d="M{x(rate):.1f} {y(one.low):.1f}V{y(one.high):.1f}"/>')
        parts.append(f'</g><text x="{legend + 10:.0f}" y="49">{html.escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
