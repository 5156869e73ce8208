"""The script that finds what goes into the image, on programs made for it."""

import sys
from pathlib import Path

import pytest
from bytecode import compiled
from modules import needed_modules


def needed(site: Path, **sources: str) -> set[str]:
    """Return the names of the modules that a program with these needs; ``main`` is where it starts."""
    program = f"program_{site.name}"
    (site / program).mkdir()
    (site / program / "__init__.py").touch()
    for name, source in sources.items():
        path = site / program / f"{'__main__' if name == 'main' else name}.py"
        path.write_text(source.replace("PROGRAM", program))
    return {name.replace(program, "PROGRAM") for name in needed_modules(program, site)}


def test_imports_at_the_top_count_and_those_for_type_checkers_do_not(tmp_path: Path) -> None:
    """What runs when a module is imported is seen; a branch that is not taken brings nothing."""
    found = needed(
        tmp_path,
        main="import colorsys\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import wave\n",
    )
    assert "colorsys" in found
    assert "wave" not in found


def test_imports_inside_of_functions_count(tmp_path: Path) -> None:
    """A module that only a function imports is needed, with what it imports in turn, inside of a function or not."""
    found = needed(
        tmp_path,
        main="def later():\n    from PROGRAM import second\n",
        second="import importlib\ndef later():\n    import colorsys\n    importlib.import_module('sched')\n",
        third="import wave\n",
    )
    assert {"PROGRAM.second", "colorsys", "sched"} <= found
    assert found.isdisjoint({"PROGRAM.third", "wave"})


def test_what_a_function_imports_beside_a_missing_extra_is_not_needed(tmp_path: Path) -> None:
    """Without the distribution that it imports, a function does not come to its other imports."""
    found = needed(tmp_path, main="def serve():\n    import no_such_extra\n    import colorsys\n")
    assert "colorsys" not in found


def test_a_dependency_that_imports_by_computed_names_comes_whole(tmp_path: Path) -> None:
    """Which of its modules such a package will want, nobody can read from its source."""
    package = tmp_path / "computing"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from importlib import import_module\ndef load(n): import_module('computing.' + n)\n"
    )
    (package / "part.py").write_text("import colorsys\n")
    assert {"computing.part", "colorsys"} <= needed(tmp_path, main="import computing\n")


@pytest.mark.parametrize(
    ("source", "codec"),
    [
        ("def f(text): return text.encode('IBM437')\n", "encodings.cp437"),
        ("def f(path): return open(path, encoding='cp1252')\n", "encodings.cp1252"),
        ("import socket\n", "encodings.idna"),
    ],
)
def test_codecs_are_found_by_the_names_that_code_has_for_them(source: str, codec: str, tmp_path: Path) -> None:
    """Those that Python code names, by any alias, and those that the C code of the interpreter does."""
    assert codec in needed(tmp_path, main=source)


SOURCE = '''"""A docstring."""


def outer(number):
    """Another."""
    assert number

    def inner():
        return (
            number
            / 0
        )

    return inner()
'''


@pytest.mark.parametrize(("lines", "expected"), [(True, [14, 10]), (False, [4, 8])])
def test_byte_code_runs_and_knows_its_lines(lines: bool, expected: list[int], tmp_path: Path) -> None:  # noqa: FBT001
    """A traceback has the lines of the instructions, or of the functions where those were left out."""
    source = tmp_path / "module.py"
    source.write_text(SOURCE)
    (tmp_path / f"compiled_{lines}.pyc").write_bytes(compiled(source, "/usr/lib/module.py", lines=lines))
    source.unlink()
    sys.path.insert(0, str(tmp_path))
    try:
        module = __import__(f"compiled_{lines}")
    finally:
        sys.path.remove(str(tmp_path))
    assert module.__doc__ is module.outer.__doc__ is None
    with pytest.raises(ZeroDivisionError) as raised:
        module.outer(0)
    assert [entry.lineno + 1 for entry in raised.traceback[1:]] == expected
