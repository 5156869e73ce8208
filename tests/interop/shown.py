"""A table that a README shows, held to the one that a run makes."""

import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["assert_shows", "release"]


def assert_shows(readme: Path, name: str, made: Iterable[str]) -> None:
    """Fail unless the README has, between ``<!-- name -->`` and ``<!-- /name -->``, the rows and cells of ``made``.

    The first cell has a name and a version; where a row was made with another release, its other cells may differ.
    """
    block = re.search(rf"^<!-- {name} -->\n(.*?)^<!-- /{name} -->$", readme.read_text(), re.MULTILINE | re.DOTALL)
    assert block, f"{readme} has no table between <!-- {name} --> and <!-- /{name} -->"
    shown, now = (_rows(lines) for lines in (block[1].split("\n"), made))
    assert list(shown) == list(now)
    for row, (version, cells) in now.items():
        if release(shown[row][0]) == release(version):  # another release may do otherwise
            assert shown[row][1] == cells, row


def release(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _rows(lines: Iterable[str]) -> dict[str, tuple[str, list[str]]]:
    """Return version and cells by what the first cell names, in order."""
    rows = {}
    for line in filter(None, lines):
        first, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        version = re.search(r" (\d[\w.]*)", first)
        rows[first.replace(version[0], "") if version else first] = (version[1] if version else "", cells)
    return rows
