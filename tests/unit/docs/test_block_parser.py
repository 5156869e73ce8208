"""How blocks of commands are found in a page, and how their output is compared."""

from pathlib import Path

import pages
import pytest
from hypothesis import given
from hypothesis import strategies as st

PAGE = """\
```sh
apt update && apt install -y first second  # two of them
```

- in a list:

  <!-- not run: it has no end -->
  ```sh
  yes
  ```

```text
not commands
```

<!-- in the background until: ready -->
```sh
serve
```

```console
$ echo a \\
>   b
a b
# date
...
```
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(PAGE)
    return tmp_path / "page.md"


def test_blocks_have_their_commands_and_what_the_comment_says(page: Path) -> None:
    """In lists, too; blocks of other languages are no commands."""
    found = pages.blocks(page.name)
    assert [(block.line, block.text, block.note) for block in found[1:3]] == [
        (9, "yes\n", ("not run", "it has no end")),
        (18, "serve\n", ("in the background until", "ready")),
    ]
    assert [block.is_run for block in found] == [True, False, True, True]
    assert pages.packages(page.name) == ["first", "second"]


def test_a_console_block_has_commands_with_their_output(page: Path) -> None:
    """After ``$`` as a user and ``#`` as root; a command may go on in the next line."""
    assert pages.blocks(page.name)[-1].commands() == [("echo a \\\n  b", ["a b"]), ("date", ["..."])]


@pytest.mark.parametrize("comment", ["not run:", "not run", "run by", "todo"])
def test_any_other_comment_before_a_block_is_an_error(page: Path, comment: str) -> None:
    """So that a reason that is missing, or a word that is misspelt, does not leave a block out."""
    page.write_text(f"<!-- {comment} -->\n```sh\ntrue\n```\n")
    with pytest.raises(ValueError, match=r"page\.md:3: "):
        pages.blocks(page.name)


LINES = st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20), max_size=4)


@given(LINES)
def test_output_as_shown_matches(lines: list[str]) -> None:
    """Invariant: what is printed exactly as it is shown is what the page shows."""
    assert pages.matches(lines, lines)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        (["in 0.1 ms (a)"], ["in 12.25 ms (a)"], True),
        (["in 0.1 ms (a)"], ["in 12.25 ms (b)"], False),
        (["2026-11-23T20:00:00.000Z listening"], ["2027-01-02T03:04:05.678Z listening"], True),
        (["a", "..."], ["a", "b", "c"], True),
        (["version ..."], ["version 1.2"], True),
        (["a"], ["a", "b"], False),
        (["a"], [], False),
        (["one address"], ["two addresses"], False),
    ],
)
def test_only_what_differs_from_run_to_run_may_differ(shown: list[str], printed: list[str], *, same: bool) -> None:
    """Times, and what three dots stand for."""
    assert pages.matches(shown, printed) is same
