"""A table that a document shows, held to the one that a run makes."""

import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["assert_shows"]


def assert_shows(document: Path, name: str, made: Iterable[str]) -> None:
    """Fail unless the document has, between ``<!-- name -->`` and ``<!-- /name -->``, the lines of ``made``.

    Of versions in the first cell only the first two numbers count: within a release of Debian the others change.
    """
    block = re.search(rf"^<!-- {name} -->\n(.*?)^<!-- /{name} -->$", document.read_text(), re.MULTILINE | re.DOTALL)
    assert block, f"{document} has no table between <!-- {name} --> and <!-- /{name} -->"
    assert list(map(_shortened, block[1].splitlines())) == list(map(_shortened, made))


def _shortened(row: str) -> str:
    _, first, *others = row.split("|")
    return "|".join((re.sub(r"( \d+\.\d+)[\w.]*", r"\1", first), *others))
