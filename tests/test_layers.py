"""Imports run one way: README's table of the modules, from the bottom up, says which may know of which."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nullsmtpd"

#: Each row's modules, from the bottom up; a package stands for all that is in it.
ROWS = [
    re.findall(r"`([\w/]+)`", cells)
    for cells in re.findall(
        r"^\| ((?:`[\w/]+`(?:, )?)+) \|",
        (ROOT / "README.md").read_text().partition("## Working on it")[2],
        re.MULTILINE,
    )
]
LEVELS = {name.rstrip("/"): level for level, row in enumerate(ROWS) for name in row}


def part_of(module: str) -> str:
    """Return the name in the table that a module of ours belongs to."""
    return [*module.split("."), "__init__"][1]


def imported(path: Path) -> set[str]:
    """Return what of ours a file imports, at the top or inside of functions, but for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body.clear()
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "nullsmtpd":
            found.add(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= set(re.findall(r"'(nullsmtpd\.[\w.]+)'", ast.unparse(node)))
    return found


def test_every_module_is_in_the_table_once() -> None:
    """No file is left out, and none is there that is not in the package."""
    files = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(name.rstrip("/") for row in ROWS for name in row) == sorted(files - {"__init__"})


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_knows_of_what_stands_above_it(path: Path) -> None:
    """A module imports only from its own row of the table and from those below."""
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for module in imported(path):
        other = part_of(module)
        assert other == "__init__" or LEVELS[other] <= LEVELS[own], f"{own} imports {module}"
