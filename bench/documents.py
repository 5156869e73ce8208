"""The figures of the documents, from the JSON files that the commands have written to this directory.

    python -m bench.documents

replaces compare.svg, and the blocks of the pages that are between their marks.
"""

import html
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.measure import Spread, number, with_spread

_BENCH = Path(__file__).parent
# The least figure of a chart: a server that has stopped takes no CPU time, and a logarithmic scale has no 0.
_LEAST = 0.01

# Okabe and Ito's colours, which colour-blind readers can tell apart; each is legible on white and on black.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

# The chart's background and text follow the reader's preference, whatever page embeds it.
_STYLE = """text { font: 13px sans-serif; fill: #1f2328 } .page { fill: #fff } .grid { stroke: #8888; stroke-width: 1 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .page { fill: #0d1117 } }"""

_HEAD = ("connections per second", "CPU, µs", "nginx's", "ratio (quartiles)", "median time to FIN, ms", "nginx's")

#: The page and the name of each block beside the tables of bench/README.md, and what it has of `figures`.
BLOCKS = {
    ("README.md", "headline"): "{table}\n"
    "Memory: {rss:.1f} MiB, {private:.1f} MiB of it shared with no other process. "
    "Start until a connection succeeds: {start:.0f} ms.\n"
    "Commit {commit}, Python {python}, {kernel}, {cpu}.\n",
    ("deploy/README.md", "capacity"): "One core answered {per_second:,.0f} connections per second, with "
    "{cpu_us:.1f} µs of CPU time for each. The process took {rss:.1f} MiB. Commit {commit}.\n",
}


def documents() -> dict[Path, str]:
    """Return what each document has to be: three pages and the chart.

    Raises `LookupError` without the figures for it, `ValueError` for a page without a block.
    """
    found = {path.name: json.loads(path.read_text()) for path in sorted(_BENCH.glob("*.json"))}
    compared = found["compare.json"]
    blocks = {("bench/README.md", name): table_and_notes(**one["report"]) for name, one in found.items()}
    numbers = figures(compared, found["footprint.json"])
    blocks |= {place: text.format(**numbers) for place, text in BLOCKS.items()}
    texts = {_BENCH / "compare.svg": chart(compared)}
    for (page, name), block in blocks.items():
        path = _BENCH.parent / page
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
        before, _, rest = (texts.get(path) or path.read_text()).partition(begin)
        _, marked, after = rest.partition(end)
        if not marked:
            raise ValueError(f"{path} has no lines {begin.strip()} and {end.strip()}")
        texts[path] = before + begin + block + end + after
    return texts


def figures(compared: Mapping[str, Any], footprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the two JSON files have for the blocks: cost beside nginx, most connections, memory and start."""
    cost = {(one["rate"], one["server"]): one for one in compared["results"]}
    closed = cost["closed", "nullsmtpd"]
    rows = []
    for rate in dict.fromkeys(rate for rate, _ in cost):
        pair = own, _ = cost[rate, "nullsmtpd"], cost[rate, "nginx"]
        name = f"closed loop: {own['per_second']['median']:,.0f}" if own is closed else rate
        cpu_us, p50_ms = ([number(one[what]["median"]) for one in pair] for what in ("cpu_us", "p50_ms"))
        rows.append([name, *cpu_us, with_spread(Spread(**own["ratio"]), 2), *p50_ms])
    idle = {one["what"]: one["value"]["median"] for one in footprint["results"] if one["server"] == "nullsmtpd"}
    return {
        **compared["machine"],
        **{name: closed[name]["median"] for name in ("per_second", "cpu_us")},
        **{what.partition(",")[0].lower(): median for what, median in idle.items()},
        "table": table(_HEAD, rows, 0),
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Return a table in Markdown; its first ``left`` columns are text."""
    marks = ["---"] * left + ["---:"] * (len(head) - left)
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, marks, *rows))


def table_and_notes(head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str], left: int) -> str:
    """Return the report of a command in Markdown."""
    return f"{table(head, rows, left)}\n{textwrap.fill(' '.join(notes), 120)}\n"


def chart(compared: Mapping[str, Any]) -> str:
    """Return an SVG line chart of what ``compare`` has measured: the CPU time of each server by rate.

    Both scales are logarithmic, so that equal ratios are equal distances. The closed loop stands apart at the right.
    Vertical lines are quartiles.
    """
    title = "CPU time to answer one connection, µs, by rate"
    note = "nullsmtpd {commit}, {kernel}, {cpu}, Python {python}".format(**compared["machine"])
    series: dict[str, dict[float, Spread]] = {}
    for one in compared["results"]:
        rate = math.inf if one["rate"] == "closed" else float(one["rate"].replace(",", ""))
        series.setdefault(one["server"], {})[rate] = Spread(**one["cpu_us"])
    width, height, left, right, top, bottom = 760, 430, 50, 20, 70, 60
    values = [edge for points in series.values() for one in points.values() for edge in (one.low, one.high)]
    low, high = math.log10(max(min(values), _LEAST) / 1.1), math.log10(max(*values, _LEAST) * 1.1)
    rates = sorted({rate for points in series.values() for rate in points})
    paced = [rate for rate in rates if rate < math.inf]
    places = {rate: math.log10(rate / paced[0]) for rate in paced}
    places[math.inf] = max(places.values(), default=0.0) + 0.6
    span = places[rates[-1]] or 1.0

    def x(rate: float) -> float:
        return left + 25 + (width - left - right - 60) * places[rate] / span

    def y(value: float) -> float:
        return top + (height - top - bottom) * (high - math.log10(max(value, _LEAST))) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{title}</title><style>{_STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}"/>',
        f'<text x="{left}" y="24" style="font-size: 16px">{title}</text>',
        f'<text x="{left}" y="{height - 10}" style="font-size: 11px">{html.escape(note)}</text>',
    ]
    for tick in (factor * 10**power for power in range(-1, 6) for factor in (1, 2, 5)):
        if low <= math.log10(tick) <= high:
            parts.append(f'<path class="grid" d="M{left} {y(tick):.1f}H{width - right}"/>')
            parts.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for rate in rates:
        name = f"{rate:,g}/s" if rate < math.inf else "closed loop"
        parts.append(f'<text x="{x(rate):.1f}" y="{height - bottom + 22}" text-anchor="middle">{name}</text>')
    for index, (name, points) in enumerate(series.items()):
        colour, legend = _COLOURS[index % len(_COLOURS)], left + index * (width - left) / len(series)
        path = " ".join(f"{x(rate):.1f},{y(points[rate].median):.1f}" for rate in paced if rate in points)
        parts.append(f'<g stroke="{colour}" stroke-width="2" fill="{colour}">')
        parts.append(f'<polyline points="{path}" fill="none"/><circle cx="{legend:.0f}" cy="45" r="4"/>')
        for rate, one in points.items():
            parts.append(f'<circle cx="{x(rate):.1f}" cy="{y(one.median):.1f}" r="3"/>')
            parts.append(f'<path d="M{x(rate):.1f} {y(one.low):.1f}V{y(one.high):.1f}"/>')
        parts.append(f'</g><text x="{legend + 10:.0f}" y="49">{html.escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text)
