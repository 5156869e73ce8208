"""Imports point one way: each part of the package may use only what `ALLOWED` lists for it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "nullsmtpd"

#: For each part of the package, the other parts that its modules may import.
ALLOWED = {
    "runtime": set[str](),
    "nullmx": {"runtime"},
    "responder": {"runtime"},
    "check": {"nullmx", "runtime"},
    "relay": {"nullmx", "runtime"},
    "cli": {"check", "nullmx", "relay", "responder", "runtime"},
    "__main__": {"cli", "runtime"},
}


def part_of(module: str) -> str:
    """Return the part that ``nullsmtpd.part.module`` belongs to; ``""`` for the package itself."""
    return [*module.split("."), ""][1]


def imports_of(path: Path) -> set[str]:
    """Return the project's modules that a file imports, at the top or inside functions, except for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body.clear()
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "nullsmtpd":
            found |= (
                {f"{node.module}.{name.name}" for name in node.names} if node.module == "nullsmtpd" else {node.module}
            )
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.split(".")[0] == "nullsmtpd"}
    return found


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_part_may_use(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    parts = {part_of(module) for module in imports_of(path)} - {own, "__version__"}
    assert parts <= ALLOWED[own]


def test_no_two_modules_import_each_other_at_the_top() -> None:
    """Within a part imports form no circle either."""
    graph = {}
    for path in FILES:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        graph[".".join(part for part in parts if part != "__init__")] = imports_of(path)

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        for other in graph.get(module, ()):
            visit(other, (*above, module))

    for module in graph:
        visit(module, ())
