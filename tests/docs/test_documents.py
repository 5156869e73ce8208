"""The documents: short, without dead links, and true of the options, the modules and the system calls."""

import json
import re
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from pages import ROOT
from support import Daemon, connect, read_all, require_tools

import nullsmtpd
from bench import documents
from nullsmtpd.cli.responder import TABLE

#: Pages for people; what tools read is not among them.
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "node_modules" for part in path.relative_to(ROOT).parts)
)
PICTURES = sorted(path for path in (ROOT / "deploy").rglob("*") if path.suffix in {".svg", ".png"})
MAX_README_LINES = 180


def headings(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> list[str]:
    """Return the targets of links and pictures that are not on other hosts."""
    text = re.sub(r"^ *```.*?^ *```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_has_a_target(page: Path) -> None:
    """Files are there, and pages have the heading that is linked to."""
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in headings(target), link


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_every_picture_is_shown_and_has_a_text_for_those_who_cannot_see_it(picture: Path) -> None:
    pages = [page for page in DOCUMENTS if picture in [(page.parent / link).resolve() for link in links(page)]]
    assert pages
    for page in pages:
        assert re.search(rf"!\[[^\]]{{20,}}\]\([^)]*{re.escape(picture.name)}\)", page.read_text()), page
    if picture.suffix == ".svg":
        root = ET.parse(picture).getroot()  # noqa: S314 - our own files
        assert root.get("viewBox")
        assert "prefers-color-scheme: dark" in picture.read_text()


def test_the_readme_has_every_option_and_its_default() -> None:
    """In the order of --help."""
    rows = re.findall(r"^\| (`--.*?) \|(.*?)\| .*\|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    shown = [
        (flag, value, default.strip())
        for flags, default in rows
        for flag, value in re.findall(r"`--([\w-]+) ?(.*?)`", flags)
    ]
    assert [(flag, value) for flag, value, _ in shown] == [(name, option.metavar) for name, option in TABLE.items()]
    for flag, _, default in shown:
        if TABLE[flag].metavar and TABLE[flag].default:
            assert default == f"`{TABLE[flag].default}`", flag


def test_contributors_find_every_module() -> None:
    """Each once, in the table of CONTRIBUTING.md, in alphabetical order within its part."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    shown = re.findall(r"^\| `([\w/]+\.py)` \| .+\|$", text, re.MULTILINE)
    package = ROOT / "nullsmtpd"
    modules = {str(path.relative_to(package)) for path in package.rglob("*.py") if path.name != "__init__.py"}
    assert set(shown) == modules
    assert len(shown) == len(modules)


def test_contributors_see_the_system_calls_of_one_connection(daemon: Daemon, tmp_path: Path) -> None:
    """Strace of a single client shows those of CONTRIBUTING.md, in that order."""
    require_tools("strace")
    text = (ROOT / "CONTRIBUTING.md").read_text()
    shown = re.search(r"^<!-- strace -->\n```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert shown
    log = tmp_path / "strace"
    with subprocess.Popen(
        ("strace", "-o", str(log), "-p", str(daemon.pid)), stderr=subprocess.PIPE, text=True
    ) as strace:
        assert strace.stderr
        assert "attached" in strace.stderr.readline()
        with connect(daemon.address) as client:
            assert read_all(client)
        daemon.wait_for(lambda: "close(" in log.read_text(), "the end of the connection")
        strace.terminate()
    calls = re.findall(r"^(\w+)\(", log.read_text(), re.MULTILINE)
    first = calls.index("accept4")
    assert calls[first : calls.index("close") + 1] == re.findall(r"^(\w+)\(", shown[1], re.MULTILINE)


def test_the_figures_are_those_that_were_measured() -> None:
    """The tables, the sentences with figures and the chart are what ``python -m bench.documents`` writes."""
    found = documents.documents()
    assert {path.relative_to(ROOT).as_posix() for path in found} == {
        *("README.md", "deploy/README.md", "bench/README.md", "bench/compare.svg")
    }
    for path, text in found.items():
        assert path.read_text() == text


def test_every_table_of_figures_has_a_file() -> None:
    """Each block of bench/README.md is named for a JSON file beside it, which names the commit that was measured."""
    names = re.findall(r"<!-- begin (\S+) -->", (ROOT / "bench/README.md").read_text())
    assert sorted(names) == sorted(path.name for path in (ROOT / "bench").glob("*.json"))
    assert all(json.loads((ROOT / "bench" / name).read_text())["machine"]["commit"] for name in names)


def test_a_block_with_one_commit_has_the_figures_of_one() -> None:
    """The blocks of README.md and deploy/README.md are made from two files, and name one commit."""
    files = (json.loads((ROOT / "bench" / name).read_text()) for name in ("compare.json", "footprint.json"))
    assert len({one["machine"]["commit"] for one in files}) == 1


def test_a_page_without_its_block_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that has lost its marks is reported, and nothing is appended somewhere."""
    monkeypatch.setitem(documents.BLOCKS, ("CONTRIBUTING.md", "headline"), "figures")
    with pytest.raises(ValueError, match=r"CONTRIBUTING.md has no lines <!-- begin headline -->"):
        documents.documents()


def test_figures_are_taken_from_what_two_commands_have_written() -> None:
    """The cost beside nginx at each rate, and what one process takes."""

    def result(rate: str, server: str, value: float) -> dict[str, object]:
        spread = {"median": value, "low": value - 1, "high": value + 1, "values": 3}
        names = ("cpu_us", "ratio", "p50_ms", "per_second")
        return {"rate": rate, "server": server} | dict.fromkeys(names, spread)

    rates = (("50", 2.0), ("closed", 40_000.0))
    results = [result(rate, server, value) for rate, value in rates for server in ("nullsmtpd", "nginx")]
    compared = {"results": results, "machine": {"commit": "abc1234", "python": "3.11", "kernel": "Linux", "cpu": "CPU"}}
    whats = {"RSS, MiB": 17.0, "private, MiB": 9.0, "start, ms": 50.0}
    idle = [{"what": what, "server": "nullsmtpd", "value": {"median": value}} for what, value in whats.items()]
    figures = documents.figures(compared, {"results": idle})
    lines = documents.BLOCKS["README.md", "headline"].format(**figures).splitlines()
    assert lines[2] == "| 50 | 2.00 | 2.00 | 2.00 (1.00-3.00) | 2.00 | 2.00 |"
    assert lines[3].startswith("| closed loop: 40,000 |")
    assert lines[5].startswith("Memory: 17.0 MiB, 9.0 MiB ")
    assert "abc1234" in lines[6]
    assert "40,000 connections per second" in documents.BLOCKS["deploy/README.md", "capacity"].format(**figures)


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_programs_use_names_that_exist(page: Path) -> None:
    """Examples in Python can be compiled, and what they use of the package is public."""
    for program in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        compile(program, str(page), "exec")
        for name in re.findall(r"\bnullsmtpd\.(\w+)", program):
            assert hasattr(nullsmtpd, name), name
