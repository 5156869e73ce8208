"""The figures of the project's README and of deploy/README.md, from what ``compare`` and ``footprint`` have measured.

    python -m bench.headline

replaces the blocks of both that are between their marks.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import report
from bench.stats import Spread

__all__ = ["BLOCKS", "expected", "figures"]

_BENCH = Path(__file__).parent
_HEAD = ("connections per second", "CPU, µs", "nginx's", "ratio (quartiles)", "median time to FIN, ms", "nginx's")

#: The page and the name of each block, and what it has of `figures`.
BLOCKS = {
    ("README.md", "headline"): "{table}\n"
    "Memory: {rss:.1f} MiB, {private:.1f} MiB of it shared with no other process. "
    "Start until a connection succeeds: {start:.0f} ms.\n"
    "Commit {commit}, Python {python}, {kernel}, {cpu}.\n",
    ("deploy/README.md", "capacity"): "One core answered {per_second:,.0f} connections per second, with "
    "{cpu_us:.1f} µs of CPU time for each. The process took {rss:.1f} MiB. Commit {commit}.\n",
}


def figures(compared: Mapping[str, Any], footprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the two JSON files have for the blocks: cost beside nginx, most connections, memory and start."""
    cost = {(one["rate"], one["server"]): one for one in compared["results"]}
    closed = cost["closed", "nullsmtpd"]
    rows = []
    for rate in dict.fromkeys(rate for rate, _ in cost):
        pair = own, _ = cost[rate, "nullsmtpd"], cost[rate, "nginx"]
        name = f"closed loop: {own['per_second']['median']:,.0f}" if own is closed else rate
        cpu_us, p50_ms = ([report.number(one[what]["median"]) for one in pair] for what in ("cpu_us", "p50_ms"))
        rows.append([name, *cpu_us, report.with_spread(Spread(**own["ratio"]), 2), *p50_ms])
    idle = {one["what"]: one["value"]["median"] for one in footprint["results"] if one["server"] == "nullsmtpd"}
    return {
        **compared["machine"],
        **{name: closed[name]["median"] for name in ("per_second", "cpu_us")},
        **{what.partition(",")[0].lower(): median for what, median in idle.items()},
        "table": report.markdown_table(_HEAD, rows),
    }


def expected(name: tuple[str, str]) -> str:
    """Return what a block has to be. Raises `LookupError` without the figures for it, `OSError` without a JSON file."""
    found = figures(*(json.loads((_BENCH / f"{file}.json").read_text()) for file in ("compare", "footprint")))
    return BLOCKS[name].format(**found)


def main() -> None:
    """Write the blocks."""
    for page, block in BLOCKS:
        path = _BENCH.parent / page
        before, _, after = report.parts(path, block)
        path.write_text(before + expected((page, block)) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
