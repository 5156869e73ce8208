"""Which modules go into the image, by programs made for it."""

from pathlib import Path

import pytest
from assemble import needed_modules


def needed(site: Path, **sources: str) -> set[str]:
    """Return the names of the modules that a program with these sources needs; ``main`` is run first."""
    package = site / "nullsmtpd"
    (package / "runtime").mkdir(parents=True)
    (package / "runtime/event_loop.py").write_text("def import_uvloop(): pass\n")
    for module, source in sources.items():
        (package / f"{'__main__' if module == 'main' else module}.py").write_text(source)
    return set(needed_modules(site))


def test_imports_at_the_top_count_and_those_for_type_checkers_do_not(tmp_path: Path) -> None:
    """What runs when a module is imported is seen; a branch that is not taken brings nothing."""
    found = needed(
        tmp_path,
        main="import colorsys\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import wave\n",
    )
    assert "colorsys" in found
    assert "wave" not in found


def test_imports_inside_functions_count(tmp_path: Path) -> None:
    """A module that only a function imports is needed, with what it imports in turn, inside a function or not."""
    found = needed(
        tmp_path,
        main="def later():\n    from nullsmtpd import second\n",
        second="import sched\ndef later():\n    import colorsys\n",
        third="import wave\n",
    )
    assert {"nullsmtpd.second", "colorsys", "sched"} <= found
    assert found.isdisjoint({"nullsmtpd.third", "wave"})


@pytest.mark.parametrize("main", ["def later():\n    serve('nullsmtpd.second')\n", "later = 'nullsmtpd.second'\n"])
def test_modules_imported_by_their_names_count(tmp_path: Path, main: str) -> None:
    """A command imports its server by name, with importlib."""
    found = needed(tmp_path, main=main, second="import colorsys\n")
    assert {"nullsmtpd.second", "colorsys"} <= found


def test_modules_imported_by_computed_names_are_needed(tmp_path: Path) -> None:
    """The modules with dnspython's record types, whose names it computes, are all needed, and what they import."""
    package = tmp_path / "dns/rdtypes/ANY"
    package.mkdir(parents=True)
    for directory in package, package.parent, package.parent.parent:
        (directory / "__init__.py").touch()
    (package / "MX.py").write_text("import colorsys\n")
    assert {"dns.rdtypes.ANY.MX", "colorsys"} <= needed(tmp_path, main="")


@pytest.mark.parametrize("name", ["encodings.idna", "encodings.ascii", "inspect", "subprocess", "tokenize"])
def test_modules_that_no_import_statement_names_are_needed(name: str, tmp_path: Path) -> None:
    """The interpreter looks codecs up by name, and functions of the standard library import some modules."""
    assert name in needed(tmp_path, main="")


@pytest.mark.parametrize("source", ["import ssl", "def later():\n    import ssl", "import hashlib, hmac, shutil"])
def test_openssl_and_archives_are_not_needed(source: str, tmp_path: Path) -> None:
    """Modules without which the standard library works are left out, and so are those that need them."""
    found = needed(tmp_path, main=source)
    assert found.isdisjoint({"ssl", "_ssl", "_hashlib", "_bz2", "_lzma", "zlib", "pickle"})


def test_what_functions_of_the_standard_library_import_is_not_needed(tmp_path: Path) -> None:
    """Functions of the standard library import modules that the program does without: random's test does statistics."""
    assert needed(tmp_path, main="import random\n").isdisjoint({"statistics", "fractions", "decimal"})
