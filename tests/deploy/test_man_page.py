"""The manual pages in deploy/man: well-formed, true of the options, and in the wheel."""

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
PAGES = sorted((ROOT / "deploy/man").iterdir())
PIP_PATIENCE = 120.0  # seconds: a build in an environment of its own

#: The options of each page.
TABLES: dict[str, Mapping[str, Option]] = {
    "nullsmtpd.8": nullsmtpd.cli.responder.TABLE,
    "nullsmtpd-check.1": {name: Option(value, "", "") for name, value in check_options().items()},
    "nullsmtpd-relay.8": nullsmtpd.cli.relay.TABLE,
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


def test_there_is_a_page_for_each_command() -> None:
    assert {page.name for page in PAGES} == TABLES.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_well_formed(page: Path) -> None:
    """No error, no warning, and no matter of style."""
    assert not complaints(page)


@pytest.mark.parametrize(("good", "bad"), [(".El\n", ""), (r"\&No", "No")])
def test_a_mistake_in_a_page_would_be_found(tmp_path: Path, good: str, bad: str) -> None:
    """A list that is not closed, which mandoc reports, and a word that groff takes for a macro."""
    broken = tmp_path / "nullsmtpd.8"
    broken.write_text((ROOT / "deploy/man/nullsmtpd.8").read_text().replace(good, bad, 1))
    assert complaints(broken)


def documented(page: str) -> dict[str, str]:
    """Return the options that a page describes, each with its description."""
    text = (ROOT / "deploy/man" / page).read_text()
    description = re.search(r"^\.Sh DESCRIPTION\n(.*?)^\.Sh ", text, re.MULTILINE | re.DOTALL)
    assert description
    items = re.split(r"^\.It (?:Fl h , )?Fl -", description[1], flags=re.MULTILINE)[1:]
    return {re.split(r"\s", item, maxsplit=1)[0]: item for item in items}


def test_every_event_of_the_log_is_documented() -> None:
    """Whatever a responder may log, under LOG, and nothing else."""
    modules = [*(ROOT / "nullsmtpd/responder").iterdir(), *(ROOT / "nullsmtpd/runtime").iterdir()]
    source = "".join(path.read_text() for path in modules if path.suffix == ".py")
    events = set(re.findall(r'\b(?:log|_log(?:_error)?)\("([a-z-]+)"', source))
    text = (ROOT / "deploy/man/nullsmtpd.8").read_text()
    section = text.partition(".Sh LOG\n")[2].partition("\n.Sh ")[0]
    items = set(re.findall(r"[a-z-]+", " ".join(re.findall(r"^\.It Cm (.+)$", section, re.MULTILINE))))
    assert items == events - {"access-suppressed"} | {"max-lingering-lowered", "max-sessions-lowered"}
    assert ".Cm access-suppressed" in section


@pytest.mark.parametrize("page", TABLES)
def test_every_option_is_documented_and_no_other(page: str) -> None:
    """In the order of --help, too."""
    assert list(documented(page)) == [*TABLES[page], "version", "help"]


@pytest.mark.parametrize("page", TABLES)
def test_a_documented_option_takes_a_value_where_it_really_does(page: str) -> None:
    """An option without a value has no argument on the page, every other one has."""
    items = documented(page)
    for name, option in TABLES[page].items():
        assert (" Ar " in items[name].splitlines()[0]) == bool(option.metavar), name


@pytest.mark.parametrize("page", TABLES)
def test_defaults_are_the_real_ones(page: str) -> None:
    """Where --help names a default, the page has the same."""
    items = documented(page)
    for name, option in TABLES[page].items():
        if option.default and option.metavar:
            assert re.search(
                rf"^The default is(\n\.\w\w)? {re.escape(option.default)}\W*$", items[name], re.MULTILINE
            ), name


def test_the_wheel_has_them(tmp_path: Path) -> None:
    """Installed where man looks beside a bin directory: share/man."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(pip, check=True, timeout=PIP_PATIENCE)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        names = {name.split(".data/data/share/man/")[-1]: name for name in files.namelist()}
        for page in PAGES:
            assert files.read(names[f"man{page.suffix[1:]}/{page.name}"]) == page.read_bytes()
