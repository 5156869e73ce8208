"""What a person sees: a table with notes, and a line of progress."""

import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

#: Columns of a terminal that tables and notes fit.
WIDTH = 80


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


def progress(text: str) -> None:
    """Show what is going on, in place, if someone is watching; an empty text clears the line."""
    if sys.stderr.isatty():
        columns = os.get_terminal_size(sys.stderr.fileno()).columns or WIDTH
        sys.stderr.write(f"\r\x1b[K{text[: columns - 1]}")
        sys.stderr.flush()
