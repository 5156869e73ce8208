"""The log: one event is one line, whatever its values are and whatever state stderr is in."""

import contextlib
import os
import re
import resource
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import require

from nullsmtpd.runtime.log import log

STAMP = rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def test_a_line_is_a_time_an_event_and_its_values(capfd: pytest.CaptureFixture[str]) -> None:
    """The format of the documentation, in UTC with milliseconds."""
    assert log("event", key="value", address="[::1]:25", count=3, why='two words, "quoted"')
    line = capfd.readouterr().err
    assert re.fullmatch(
        r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z event key=value address=\[::1\]:25 count=3 "
        r'why="two words, \\"quoted\\""\n',
        line,
    )


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


@contextlib.contextmanager
def stderr_in(path: Path) -> Iterator[None]:
    """Append what is logged to a file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        with stderr_at(descriptor):
            yield
    finally:
        os.close(descriptor)


@given(st.lists(st.text(max_size=100), min_size=1, max_size=5))
def test_any_value_stays_within_its_line(tmp_path_factory: pytest.TempPathFactory, values: list[str]) -> None:
    """Invariant: printable ASCII, one line end, and a quoted value ends at its closing quote."""
    path = tmp_path_factory.mktemp("log") / "log"
    with stderr_in(path):
        assert log("event", **{f"key{number}": value for number, value in enumerate(values)})
    fields = "".join(rf' key{number}=([^\s"]+|"([^"\\]|\\.)*")' for number in range(len(values)))
    assert re.fullmatch(STAMP + rb" event" + fields.encode() + rb"\n", path.read_bytes())
    assert all(b" " <= bytes([octet]) <= b"~" for octet in path.read_bytes()[:-1])


@given(st.integers(1, 3 * select.PIPE_BUF))
def test_no_line_is_longer_than_a_pipe_takes_in_one_piece(length: int) -> None:
    """Invariant: a longer line is cut, and ends where it should."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe:
        with stderr_at(writer):
            os.close(writer)
            assert log("event", filler="x" * length)
        (line,) = list(pipe)
    assert re.fullmatch(STAMP + rb" event filler=x+\n", line)
    assert len(line) <= select.PIPE_BUF
    assert len(line) >= min(length, select.PIPE_BUF - 1)


def test_a_closed_stderr_loses_the_line_and_nothing_else() -> None:
    """A daemon whose stderr is closed continues."""
    with stderr_at(None):
        assert not log("event")


def test_a_pipe_without_a_reader_loses_the_line_and_nothing_else() -> None:
    """EPIPE is not raised; the signal that comes with it is ignored by the interpreter."""
    reader, writer = os.pipe()
    os.close(reader)
    with stderr_at(writer):
        os.close(writer)
        assert not log("event")


def test_a_full_disk_loses_the_line_and_nothing_else() -> None:
    """ENOSPC is not raised."""
    require(os.path.exists("/dev/full"), "Linux's /dev/full")  # noqa: PTH110 - an answer without a Path
    full = os.open("/dev/full", os.O_WRONLY)
    with stderr_at(full):
        os.close(full)
        assert not log("event")


@contextlib.contextmanager
def failing_after(seconds: int) -> Iterator[None]:
    """Fail the test when a system call blocks."""

    def interrupt(*_: object) -> None:
        pytest.fail(f"blocked for {seconds} s")

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def test_a_full_pipe_loses_the_line_and_does_not_block() -> None:
    """A daemon whose log nobody reads continues, and the caller knows how many lines were lost."""
    reader, writer = os.pipe()
    with stderr_at(writer), failing_after(10):
        os.close(writer)
        written = sum(log("event", filler="x" * 30) for _ in range(3000))  # 70 octets each: more than a pipe holds
        assert 0 < written < 3000
    with os.fdopen(reader, "rb") as pipe:
        lines = list(pipe)
    assert len(lines) == written
    assert all(line.endswith(b"x\n") for line in lines)


@contextlib.contextmanager
def file_size_limit(octets: int) -> Iterator[None]:
    """Let no file of this process grow beyond this size, as on a disk that is nearly full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_is_freed_later_has_no_joined_lines(tmp_path: Path) -> None:
    """The line that was written in part is ended before the next one."""
    path = tmp_path / "log"
    with stderr_in(path):
        assert log("first")
        with file_size_limit(path.stat().st_size + 30):
            assert not log("cut", filler="x" * 30)
            assert not log("lost")
        assert log("second")
        assert log("third")
    lines = path.read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["first", "cut", "second", "third"]


@given(st.lists(st.integers(1, 60) | st.just(select.PIPE_BUF), max_size=30), st.sampled_from([3, 5000]))
def test_no_history_of_short_writes_joins_lines(rooms: list[int], length: int) -> None:
    """Invariant: each line of the file is a whole event, or the part of one that was written, or empty."""
    file = bytearray()
    left = iter([*rooms, select.PIPE_BUF, select.PIPE_BUF])

    def write(_descriptor: int, octets: bytes) -> int:
        assert len(octets) <= select.PIPE_BUF
        written = octets[: next(left)]
        file.extend(written)
        return len(written)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", write)
        were_written = [log("event", number=number, end="x" * length) for number in range(len(rooms) + 2)]
    lines = file.split(b"\n")
    whole = rb"%b event number=(\d+) end=x{3,}" % STAMP
    numbers = [int(match[1]) for line in lines if (match := re.fullmatch(whole, line))]
    assert set(numbers) >= {number for number, was_written in enumerate(were_written) if was_written}
    assert numbers[-2:] == [len(rooms), len(rooms) + 1]
    assert all(line.count(b" event") <= 1 for line in lines)
    assert lines[-1] == b""
