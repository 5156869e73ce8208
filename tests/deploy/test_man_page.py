"""deploy/man/nullsmtpd.8: well-formed, true of the options, and in the wheel."""

import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from support import PATIENCE, check_options, require_tools

import nullsmtpd.cli.relay
import nullsmtpd.cli.responder
from nullsmtpd.cli.arguments import Option

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "deploy/man/nullsmtpd.8"
PIP_PATIENCE = 120.0  # seconds: a build in an environment of its own

TABLES: dict[str, Mapping[str, Option]] = {
    "The responder": nullsmtpd.cli.responder.TABLE,
    "check": {name: Option(value, "", "") for name, value in check_options().items()},
    "relay": nullsmtpd.cli.relay.TABLE,
}


def complaints(page: Path) -> str:
    """Return what mandoc and groff, which man-db uses, have to say.

    Less that mandoc finds no page of another package: that may not be installed.
    """
    require_tools("mandoc", "groff")
    said = ""
    for command in (["mandoc", "-T", "lint", "-W", "style"], ["groff", "-mdoc", "-T", "utf8", "-ww", "-z"]):
        result = subprocess.run([*command, page], capture_output=True, text=True, timeout=PATIENCE, check=False)
        said += result.stdout + (result.stderr if command[0] == "groff" else "")
    return re.sub(".*referenced manual not found.*\n", "", said)


def test_the_page_is_well_formed() -> None:
    """No error, no warning, and no matter of style."""
    assert not complaints(PAGE)


@pytest.mark.parametrize(("good", "bad"), [(".El\n", ""), (r"\&No", "No")])
def test_a_mistake_in_the_page_would_be_found(tmp_path: Path, good: str, bad: str) -> None:
    """A list that is not closed, which mandoc sees, and a word that groff takes for a macro."""
    broken = tmp_path / "nullsmtpd.8"
    broken.write_text(PAGE.read_text().replace(good, bad, 1))
    assert complaints(broken)


def documented(section: str) -> dict[str, str]:
    """Return the options in a section of the page, each with its description."""
    text = re.search(rf"^\.Ss {section}\n(.*?)^\.S[sh] ", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert text
    items = re.split(r"^\.It Fl -", text[1], flags=re.MULTILINE)[1:]
    return {re.split(r"\s", item, maxsplit=1)[0]: item for item in items}


@pytest.mark.parametrize("section", TABLES)
def test_every_option_is_documented_and_no_other(section: str) -> None:
    """In the order of --help, too."""
    assert list(documented(section)) == [*TABLES[section], "version", "help"]


@pytest.mark.parametrize("section", TABLES)
def test_a_documented_option_takes_a_value_where_it_really_does(section: str) -> None:
    """A switch has no argument on the page, every other option has one."""
    items = documented(section)
    for name, option in TABLES[section].items():
        assert (" Ar " in items[name].splitlines()[0]) == bool(option.metavar), name


@pytest.mark.parametrize("section", TABLES)
def test_defaults_are_the_real_ones(section: str) -> None:
    """Where --help names a default, the page has the same."""
    items = documented(section)
    for name, option in TABLES[section].items():
        if option.default and option.metavar:
            assert re.search(
                rf"^The default is(\n\.\w\w)? {re.escape(option.default)}\W*$", items[name], re.MULTILINE
            ), name


def test_the_wheel_has_it(tmp_path: Path) -> None:
    """Installed where man looks beside a bin directory: share/man/man8."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(pip, check=True, timeout=PIP_PATIENCE)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".data/data/share/man/man8/nullsmtpd.8"))
        assert files.read(name) == PAGE.read_bytes()
