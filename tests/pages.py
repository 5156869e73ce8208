"""The commands that the documents show, and whether their output is what the documents show.

A block of commands starts with ```` ```sh ```` (a script) or ```` ```console ```` (commands after ``$`` or ``#``, each
with its output). An HTML comment on the line before it, which a reader does not see, says how it is tested:

- no comment: it is run, after the blocks above it on the same page;
- ``<!-- in the background until: TEXT -->``: it is run until TEXT appears in its output, and goes on;
- ``<!-- run by: FILE -->``: another test, or the CI, reads it from the page and runs it;
- ``<!-- not run: REASON -->``.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["PAGES", "ROOT", "Block", "Command", "blocks", "matches", "packages"]

ROOT = Path(__file__).parent.parent

#: Every page with commands.
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "bench/README.md",
    "deploy/README.md",
    "deploy/image/README.md",
    "deploy/relay/README.md",
    "tests/interop/README.md",
)

_FENCE = re.compile(
    r"^(?P<indent> *)(?:<!-- (?P<note>[^\n]*) -->\n(?P=indent))?```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_NOTE = re.compile(r"(in the background until|run by|not run): (.+)")

# What differs from one run to the next, and what stands for it in the pattern of a line: times, dates, process ids.
_VARIABLE = (
    (r"\d+(?:\\\.\d+)?(?=\\ (?:ms|µs|s)\b)", r"[\\d.]+"),
    (r"\d{4}\\-\d\d\\-\d\dT[\d:\\.]+Z", r"\\S+Z"),
    (r"\.\.\.|…", ".*"),
)


class Command(NamedTuple):
    """One command of a ``console`` block, and the lines that it should print."""

    text: str
    output: list[str]


class Block(NamedTuple):
    """Commands of a page. ``note``: what the comment before them is about, and what it says of that; else empty."""

    page: str
    line: int
    language: str
    text: str
    note: tuple[str, str]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        return self.note[0] in {"", "in the background until"}

    def commands(self) -> list[Command]:
        """Return the commands of a ``console`` block."""
        commands: list[Command] = []
        for line in self.text.splitlines():
            if line.startswith(("$ ", "# ")):
                commands.append(Command(line[2:], []))
            elif commands[-1].text.endswith("\\"):
                commands[-1] = Command(f"{commands[-1].text}\n{line.removeprefix('> ')}", [])
            else:
                commands[-1].output.append(line)
        return commands


def blocks(page: str) -> list[Block]:
    """Return the blocks of commands of a page. Raises `ValueError` for a comment that is none of those above."""
    text = (ROOT / page).read_text()
    return list(_blocks(page, text))


def _blocks(page: str, text: str) -> Iterator[Block]:
    for fence in _FENCE.finditer(text):
        if fence["language"] not in {"sh", "console"}:
            continue
        line = text.count("\n", 0, fence.start("text")) + 1
        note = ("", "")
        if fence["note"] is not None:
            parsed = _NOTE.fullmatch(fence["note"])
            if not parsed:
                raise ValueError(f"{page}:{line}: {fence['note']!r} is none of the comments that tell how")
            note = (parsed[1], parsed[2])
        commands = re.sub(f"^{fence['indent']}", "", fence["text"], flags=re.MULTILINE)
        yield Block(page, line, fence["language"], commands, note)


def packages(page: str) -> list[str]:
    """Return the packages that the commands of a page install, in alphabetical order."""
    names: set[str] = set()
    for block in blocks(page):
        if block.is_run:
            for arguments in re.findall(r"apt(?:-get)? install (.*)", block.text):
                names |= {word for word in shlex.split(arguments, comments=True) if not word.startswith("-")}
    return sorted(names)


def matches(expected: list[str], printed: list[str]) -> bool:
    """Return whether a command has printed what the page shows; three dots stand for any text or any lines."""
    pattern = "".join(_line_pattern(line) for line in expected)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in printed)) is not None


def _line_pattern(line: str) -> str:
    if line.strip() in {"...", "…"}:
        return r"(?:.*\n)*"
    pattern = re.escape(line).replace(re.escape("..."), "...")
    for found, replacement in _VARIABLE:
        pattern = re.sub(found, replacement, pattern)
    return pattern + r"\n"
