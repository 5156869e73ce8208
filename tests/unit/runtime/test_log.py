import contextlib
import os
import re
import select
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import require

from nullsmtpd.runtime.log import _quoted, log, log_each


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


@contextlib.contextmanager
def stderr_at(descriptor: int | None) -> Iterator[None]:
    """Put another descriptor, or none, where stderr is."""
    saved = os.dup(2)
    if descriptor is None:
        os.close(2)
    else:
        os.dup2(descriptor, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def test_a_closed_stderr_loses_the_line_and_nothing_else() -> None:
    """A daemon whose stderr is closed goes on."""
    with stderr_at(None):
        log("event")
        assert log_each("event", [{}, {}]) == 0


def test_a_pipe_that_nobody_holds_loses_the_line_and_nothing_else() -> None:
    """EPIPE is no error of ours; the signal that comes with it is ignored by the interpreter."""
    reader, writer = os.pipe()
    os.close(reader)
    with stderr_at(writer):
        os.close(writer)
        assert log_each("event", [{}]) == 0


def test_a_full_disk_loses_the_line_and_nothing_else() -> None:
    """ENOSPC is no error of ours."""
    require(os.path.exists("/dev/full"), "Linux's /dev/full")  # noqa: PTH110 - an answer without a Path
    full = os.open("/dev/full", os.O_WRONLY)
    with stderr_at(full):
        os.close(full)
        assert log_each("event", [{}]) == 0


def test_a_full_pipe_loses_the_line_and_does_not_block() -> None:
    """A daemon whose log nobody reads goes on, and knows how many lines were lost."""
    reader, writer = os.pipe()
    with stderr_at(writer):
        os.close(writer)
        # 3000 lines of 70 octets, more than a pipe holds: one by one, and many with one write
        written = sum(log_each("event", [{"filler": "x" * 30}]) for _ in range(1500))
        written += log_each("event", [{"filler": "x" * 30}] * 1500)
        assert 0 < written < 3000
    with os.fdopen(reader, "rb") as pipe:
        lines = list(pipe)
    assert len(lines) == written
    assert all(line.endswith(b"x\n") for line in lines)


@given(st.lists(st.integers(1, 5000), max_size=40))
def test_lines_of_any_length_arrive_as_so_many_lines(lengths: list[int]) -> None:
    """Invariant: no line is longer than a pipe takes at once, and each ends where it should, in whatever company."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe:
        with stderr_at(writer):
            os.close(writer)
            written = log_each("event", [{"filler": "x" * length} for length in lengths])
        lines = list(pipe)
    assert len(lines) == written
    assert all(re.fullmatch(rb"\S+ event filler=x+\n", line) for line in lines)
    assert all(len(line) <= select.PIPE_BUF for line in lines)


def test_many_lines_are_few_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst's lines leave in blocks of what a pipe takes at once."""
    blocks: list[bytes] = []

    def write(_descriptor: int, octets: bytes) -> int:
        blocks.append(octets)
        return len(octets)

    monkeypatch.setattr(os, "write", write)
    assert log_each("event", [{"number": number} for number in range(256)]) == 256
    assert len(blocks) <= 2 + sum(map(len, blocks)) // select.PIPE_BUF
    assert b"".join(blocks).count(b"\n") == 256
