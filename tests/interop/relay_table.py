"""Print the replies of relays that are set up by deploy/relay/: ``python tests/interop/relay_table.py``, as root.

The README there has the output between ``<!-- relays -->`` and ``<!-- /relays -->``.
"""

import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # for conftest, as pytest has it

from debian import SUITES
from interview import NOBODY, SOMEBODY, Interview, Reply, interview
from recipes import RECIPES, Recipe

__all__ = ["relay_table"]

_HEAD = (
    "relay",
    "recipient with a null MX",
    "sender with a null MX",
    "other recipients",
    "`nullsmtpd relay` stopped",
    "stopped within a session",
    "no DNS",
)


def relay_table(interviews: Iterable[tuple[Recipe, Interview]]) -> Iterator[str]:
    """Make the lines of the table: one for each recipe and each set of replies, with the versions that give them."""
    versions: dict[tuple[str, ...], list[str]] = {}
    for recipe, seen in interviews:
        versions.setdefault((recipe.heading, *_cells(seen)), []).append(seen.version)
    rows = [(_name(heading, " and ".join(found)), *cells) for (heading, *cells), found in versions.items()]
    for cells in (_HEAD, ("---",) * len(_HEAD), *rows):
        yield f"| {' | '.join(cells)} |"


def _name(heading: str, versions: str) -> str:
    name, comma, setting = heading.partition(",")
    return f"{name} {versions}{comma}{setting}"


def _cells(seen: Interview) -> Iterator[str]:
    yield f"`{seen.answered[NOBODY].code} {seen.answered[NOBODY].text}`"
    yield _codes([seen.senders[NOBODY]])
    yield _codes([seen.answered[SOMEBODY]])
    yield _codes(seen.stopped.values())
    yield _codes(seen.cut_off.values())
    yield _codes(seen.without_dns.values())


def _codes(replies: Iterable[Reply]) -> str:
    """Return the codes, each once."""
    return ", ".join(dict.fromkeys(f"`{reply.status}`" for reply in replies))


def main() -> None:
    """Interview every relay of every suite."""
    if os.geteuid():
        sys.exit("needs root")
    recipes, suites = zip(*itertools.product(RECIPES, SUITES), strict=True)
    with ThreadPoolExecutor(len(recipes)) as pool:
        for line in relay_table(zip(recipes, pool.map(interview, recipes, suites), strict=True)):
            print(line)  # noqa: T201 - this is a program


if __name__ == "__main__":
    main()
