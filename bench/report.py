"""What a person sees: tables for the terminal and for Markdown, progress, and the chart."""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from bench.spread import Spread

__all__ = ["Bar", "Rows", "bars", "markdown", "number", "progress", "progress_end", "table", "with_spread"]

#: Name, user and system microseconds, and the quartiles of their sum.
Bar = tuple[str, float, float, Spread]

Rows = Sequence[Sequence[str]]

_USER, _SYSTEM = "#d08b2a", "#3b6ea5"


def number(value: float | None, digits: int = 1) -> str:
    """Write a number, or a dash for what could not be measured."""
    if value is None:
        return "-"
    return f"{value:,.{digits}f}"


def with_spread(value: Spread | None, digits: int = 1) -> str:
    """Write a median with its quartiles: ``31.4 (30.9-32.0)``."""
    if value is None:
        return "-"
    return f"{value.median:,.{digits}f} ({value.low:,.{digits}f}-{value.high:,.{digits}f})"


def table(head: Sequence[str], rows: Rows) -> str:
    """Return an aligned table, its first column to the left and the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        first = row[0].ljust(widths[0])
        return "  ".join([first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])

    return "\n".join([line(head), "  ".join("-" * width for width in widths), *(line(row) for row in rows)])


def markdown(head: Sequence[str], rows: Rows) -> str:
    """Return the same as a Markdown table."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n"


def progress(text: str) -> None:
    """Show what is going on, in place, if someone is watching."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def progress_end() -> None:
    """Clear the line of progress."""
    progress("")


def bars(path: Path, title: str, notes: Sequence[str], rows: Sequence[Bar]) -> None:
    """Write an SVG chart of CPU time: its text is text, and the same rows give the same file."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "nullsmtpd", "font.family": "sans-serif"})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 1.6 + 0.42 * len(rows)), layout="constrained")
    names = [row[0] for row in rows]
    user, system = [row[1] for row in rows], [row[2] for row in rows]
    axes.barh(names, system, color=_SYSTEM, label="system")
    axes.barh(names, user, left=system, color=_USER, label="user")
    for place, (_, user_us, system_us, quartiles) in enumerate(rows):
        axes.plot([quartiles.low, quartiles.high], [place, place], color="black", linewidth=1)
        axes.text(max(user_us + system_us, quartiles.high), place, f"  {quartiles.median:.1f}", va="center")
    axes.invert_yaxis()
    axes.margins(x=0.1)
    below = ["CPU µs; line: middle half of the rounds", *(textwrap.fill(note, 100) for note in notes)]
    axes.set_xlabel("\n".join(below), fontsize=8)
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
