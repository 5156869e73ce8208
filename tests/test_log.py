import os
import re

import pytest
from conftest import require
from hypothesis import given
from hypothesis import strategies as st

from nullsmtpd.log import _quoted, log


def test_a_line_is_a_time_an_event_and_its_values(capfd: pytest.CaptureFixture[str]) -> None:
    """The format of the documentation, in UTC with milliseconds."""
    log("event", key="value", address="[::1]:25", count=3, why='two words, "quoted"')
    line = capfd.readouterr().err
    assert re.fullmatch(
        r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z event key=value address=\[::1\]:25 count=3 "
        r'why="two words, \\"quoted\\""\n',
        line,
    )


@given(st.text())
def test_any_value_stays_within_its_line(value: str) -> None:
    """Invariant: printable ASCII, no line end, and a quoted value ends at its closing quote."""
    quoted = _quoted(value)
    assert quoted
    assert all(" " <= character <= "~" for character in quoted)
    assert re.fullmatch(r'[^\s"]+|"([^"\\]|\\.)*"', quoted)


def test_a_closed_stderr_loses_the_line_and_nothing_else() -> None:
    """A daemon whose stderr is closed goes on."""
    saved = os.dup(2)
    os.close(2)
    try:
        log("event")
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def test_a_full_pipe_loses_the_line_and_does_not_block() -> None:
    """A daemon whose log nobody reads goes on."""
    require(hasattr(os, "set_blocking"), "POSIX pipes")
    reader, writer = os.pipe()
    saved = os.dup(2)
    os.dup2(writer, 2)
    try:
        for _ in range(3000):  # 3000 lines of 70 octets: more than a pipe holds
            log("event", filler="x" * 30)
    finally:
        os.dup2(saved, 2)
        for descriptor in (saved, writer):
            os.close(descriptor)
    with os.fdopen(reader, "rb") as pipe:
        assert all(line.endswith(b"x\n") for line in pipe)
