"""How the image is put together: byte code, and the version on the label."""

import re
import traceback
from pathlib import Path
from typing import Any

import pytest
from assemble import _without_lines
from hypothesis import given
from hypothesis import strategies as st

from nullsmtpd import __version__

ROOT = Path(__file__).parents[3]


def test_label_has_the_packages_version() -> None:
    """The Dockerfile states the version once, for the label."""
    assert re.findall(r"^ARG VERSION=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE) == [__version__]


@given(st.integers(0, 40), st.integers(1, 40))
def test_code_without_lines_runs_and_tracebacks_name_the_function(before: int, statements: int) -> None:
    """Invariant: in a function of any length a traceback has the line where the function begins."""
    source = "\n" * before + "def outer(values):\n" + "    values.append(1)\n" * statements
    source += "    def inner():\n        return values[0] / 0\n    return inner()\n"
    namespace: dict[str, Any] = {}
    exec(_without_lines(compile(source, "module.py", "exec", optimize=2)), namespace)  # noqa: S102 - the code above
    values: list[int] = []
    with pytest.raises(ZeroDivisionError) as raised:
        namespace["outer"](values)
    assert len(values) == statements
    frames = traceback.extract_tb(raised.value.__traceback__)[-2:]
    assert [(frame.name, frame.lineno) for frame in frames] == [
        ("outer", before + 1),
        ("inner", before + 1 + statements + 1),
    ]
