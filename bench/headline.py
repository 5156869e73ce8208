"""The figures of the project's README and of deploy/README.md, from what ``compare`` and ``footprint`` have measured.

    python -m bench.headline

replaces the blocks of both that are between their marks.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import report
from bench.stats import Spread

__all__ = ["BLOCKS", "capacity", "expected", "headline"]

_BENCH = Path(__file__).parent
_HEAD = ("connections per second", "CPU, µs", "nginx's", "ratio (quartiles)", "median time to FIN, ms", "nginx's")
_CLOSED = "closed"

_Found = Mapping[str, Any]  # what a JSON file has


def headline(compared: _Found, footprint: _Found) -> str:
    """Return what a connection costs beside nginx, and memory and start."""
    cost = {(one["rate"], one["server"]): one for one in compared["results"]}
    rows = []
    for rate in dict.fromkeys(rate for rate, _ in cost):
        own, nginx = cost[rate, "nullsmtpd"], cost[rate, "nginx"]
        rows.append(
            [
                f"closed loop: {own['per_second']['median']:,.0f}" if rate == _CLOSED else rate,
                *(report.number(one["cpu_us"]["median"]) for one in (own, nginx)),
                report.with_spread(Spread(**own["ratio"]), 2),
                *(report.number(one["p50_ms"]["median"]) for one in (own, nginx)),
            ]
        )
    machine = compared["machine"]
    rss, private, start = (_idle(footprint, what) for what in ("RSS, MiB", "private, MiB", "start, ms"))
    return (
        f"{report.markdown_table(_HEAD, rows)}\n"
        f"Memory: {rss:.1f} MiB, {private:.1f} MiB of it shared with no other process. "
        f"Start until a connection succeeds: {start:.0f} ms.\n"
        f"Commit {machine['commit']}, Python {machine['python']}, {machine['kernel']}, {machine['cpu']}.\n"
    )


def capacity(compared: _Found, footprint: _Found) -> str:
    """Return what one process can do, and what it takes."""
    (closed,) = (one for one in compared["results"] if (one["rate"], one["server"]) == (_CLOSED, "nullsmtpd"))
    return (
        f"One core answered {closed['per_second']['median']:,.0f} connections per second, with "
        f"{closed['cpu_us']['median']:.1f} µs of CPU time for each. The process took "
        f"{_idle(footprint, 'RSS, MiB'):.1f} MiB. Commit {compared['machine']['commit']}.\n"
    )


#: Which page has which block.
BLOCKS: Mapping[tuple[str, str], Callable[[_Found, _Found], str]] = {
    ("README.md", "headline"): headline,
    ("deploy/README.md", "capacity"): capacity,
}


def _idle(footprint: _Found, what: str) -> float:
    (own,) = (one for one in footprint["results"] if (one["what"], one["server"]) == (what, "nullsmtpd"))
    return float(own["value"]["median"])


def expected(name: tuple[str, str]) -> str:
    """Return what a block has to be. Raises `ValueError` without the figures for it, or the JSON files."""
    try:
        return BLOCKS[name](*(json.loads((_BENCH / f"{file}.json").read_text()) for file in ("compare", "footprint")))
    except (LookupError, OSError, TypeError) as error:
        raise ValueError(f"compare.json and footprint.json have not the figures for it: {error!r}") from None


def main() -> int:
    """Write the blocks; return the exit status."""
    for page, block in BLOCKS:
        path = _BENCH.parent / page
        try:
            before, _, after = report.parts(path, block)
            path.write_text(before + expected((page, block)) + after, encoding="utf-8")
        except (ValueError, OSError) as error:
            sys.stderr.write(f"bench.headline: {page}: {error}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
