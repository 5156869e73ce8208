"""Print what relays say at RCPT when set up after deploy/relay/: ``python tests/interop/relay_table.py``, as root.

The README there and the one of the project have the output between ``<!-- relays -->`` and ``<!-- /relays -->``.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # for conftest, as pytest has it

from interview import NOBODY, SOMEBODY, Interview, Reply, interview
from recipes import RECIPES, Recipe

__all__ = ["relay_table"]

_HEAD = (
    "relay",
    "domain with a null MX",
    "ordinary domain",
    "`nullsmtpd relay` stopped",
    "stopped within a session",
    "no DNS",
)


def relay_table(interviews: Iterable[tuple[Recipe, Interview]]) -> Iterator[str]:
    """Make the lines of the table."""
    for cells in (_HEAD, ("---",) * len(_HEAD), *(_row(recipe, seen) for recipe, seen in interviews)):
        yield f"| {' | '.join(cells)} |"


def _row(recipe: Recipe, seen: Interview) -> Iterable[str]:
    name, comma, setting = recipe.heading.partition(",")
    yield f"{name} {seen.version}{comma}{setting}"
    yield f"`{seen.answered[NOBODY].code} {seen.answered[NOBODY].text}`"
    yield _codes([seen.answered[SOMEBODY]])
    yield _codes(seen.stopped.values())
    yield _codes(seen.cut_off.values())
    yield _codes(seen.without_dns.values())


def _codes(replies: Iterable[Reply]) -> str:
    """Name the codes, once where they are the same whatever the domain."""
    return ", ".join(dict.fromkeys(f"`{reply.status}`" for reply in replies))


def main() -> None:
    """Interview every relay."""
    if os.geteuid():
        sys.exit("needs root")
    with ThreadPoolExecutor(len(RECIPES)) as pool:
        for line in relay_table(zip(RECIPES, pool.map(interview, RECIPES), strict=True)):
            print(line)  # noqa: T201 - this is a program


if __name__ == "__main__":
    main()
