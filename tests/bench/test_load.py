"""`bench load`: every connection has one outcome, lost lines and wrong arguments are reported, Ctrl-C ends it."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from benching import ROOT, accept_queues, bench
from misbehaving import FIN, HOLD, LISTEN, RESET, serving
from support import LINE, PATIENCE, Daemon, Start

from bench import client, load
from bench.client import Plan
from bench.outcomes import DIALOGUE, Outcome


def at(daemon: Daemon) -> str:
    host, port = daemon.address
    return f"{host}:{port}"


def test_closed_loop_load_counts_every_connection_once(daemon: Daemon, tmp_path: Path) -> None:
    """`load --clients` starts as many connections as asked for, and each has one outcome and one time."""
    path = tmp_path / "load.json"
    text, found = bench("load", at(daemon), "--clients", "8", "--connections", "300", json_path=path)
    assert found["outcomes"] == {"answered, FIN": 300}
    assert found["started"] == 300
    assert found["lost"] == 0
    assert {name: row["count"] for name, row in found["ms"].items()} == dict.fromkeys(
        ("time to connect", "time to first octet", "time to FIN"), 300
    )
    assert int(daemon.stats()["connections"]) == 300
    assert max(map(len, text.splitlines())) <= 80
    assert "ListenDrops" in text
    assert found["machine"]["python"]


def test_open_loop_load_offers_its_rate_and_counts_from_the_schedule(daemon: Daemon, tmp_path: Path) -> None:
    """`load --rate` starts rate x duration connections and reports how late each of them started."""
    _, found = bench("load", at(daemon), "--rate", "200", "--duration", "1", json_path=tmp_path / "load.json")
    assert found["outcomes"] == {"answered, FIN": 200}
    assert found["offered"] == {"rate": 200}
    assert found["seconds"] > 0.99  # the last one is due after 0.995 s
    assert found["ms"]["late start"]["count"] == 200


def test_a_stall_of_the_generator_leaves_no_connection_out(daemon: Daemon) -> None:
    """What was due while the generator stood still is started all the same, and counts from when it was due."""
    reports: list[object] = []

    def stall(outcomes: object) -> None:
        if not reports:
            time.sleep(0.6)  # beyond the end of the plan
        reports.append(outcomes)

    tally = client.run(Plan((daemon.address,), rate=100, seconds=0.5), stall)
    assert tally.outcomes == {Outcome.ANSWERED: 50}
    assert len(tally.late) == len(tally.fin) == 50
    assert sorted(tally.late)[25] > 0.25


@pytest.mark.parametrize("mode", ["session", "mail"])
def test_a_whole_dialogue_is_one_unit_of_load(start: Start, mode: str, tmp_path: Path) -> None:
    """`load --dialogue` is refused by either mode at or before MAIL, sends QUIT, and is counted once."""
    daemon = start("--mode", mode, "--hostname", "mail.test.example")
    arguments = ("--dialogue", "--clients", "8", "--connections", "100")
    text, found = bench("load", at(daemon), *arguments, json_path=tmp_path / "load.json")
    assert found["unit"] == "dialogue"
    assert found["outcomes"] == {"answered, FIN": 100}
    assert "EHLO, MAIL and QUIT" in text


class Resume(threading.Thread):
    """Resumes a stopped server once 1,000 clients wait, or when patience ends; ``queue``: how many there were."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__()
        self._daemon = daemon
        self.queue = 0

    def run(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.queue < 1000 and time.monotonic() < deadline:
            time.sleep(0.01)
            self.queue = sum(accept_queues(self._daemon.address[1]))
        self._daemon.process.send_signal(signal.SIGCONT)


def test_a_burst_that_finds_the_server_busy_is_answered_to_the_last(daemon: Daemon, tmp_path: Path) -> None:
    """Clients that all connect before the first is answered wait in the accept queue; none is dropped or lost."""
    daemon.process.send_signal(signal.SIGSTOP)  # what a busy server looks like to its accept queue
    resume = Resume(daemon)
    resume.start()
    arguments = ("--clients", "1000", "--connections", "1000", "--timeout", "60")
    _, found = bench("load", at(daemon), *arguments, json_path=tmp_path / "load.json")
    resume.join()
    assert resume.queue == 1000
    assert found["outcomes"] == {"answered, FIN": 1000}


def two_clients(*deeds: bytes | str, **plan: Any) -> Counter[Outcome]:  # noqa: ANN401 - the fields of a Plan
    """Have two connections, one after the other, to a server that does this; return their outcomes."""
    timeout = 0.3 if HOLD in deeds else PATIENCE
    with serving(*deeds) as server:
        targets = (("127.0.0.1", server.port),)
        outcomes = client.run(Plan(targets, clients=1, connections=2, timeout=timeout, **plan)).outcomes
    assert outcomes.total() == 2
    return outcomes


@pytest.mark.parametrize(
    ("deeds", "outcome"),
    [
        ((LINE[:10], FIN), "incomplete, FIN"),
        ((FIN,), "incomplete, FIN"),
        ((b"220 welcome\r\n", FIN), "wrong octets"),
        ((LINE, b"more\r\n", FIN), "wrong octets"),
        ((RESET,), "incomplete, RST"),
        ((LINE, RESET), "answered, RST"),
        ((HOLD,), "timed out"),
    ],
)
def test_load_tells_outcomes_apart(deeds: tuple[bytes | str, ...], outcome: str) -> None:
    """Whatever a server does wrong has an outcome of its own."""
    assert list(two_clients(*deeds)) == [outcome]


@pytest.mark.parametrize("deeds", [(b"5" * 100_000, HOLD), (LINE, LINE * 3000, HOLD)])
def test_what_never_ends_is_given_up(deeds: tuple[bytes | str, ...]) -> None:
    """Octets or replies without end are wrong, and neither fill the memory nor take until the time limit."""
    with serving(*deeds) as server:
        targets = (("127.0.0.1", server.port),)
        tally = client.run(Plan(targets, clients=1, connections=1, seconds=3600, timeout=PATIENCE))
    assert tally.outcomes == {Outcome.WRONG: 1}
    assert tally.window < PATIENCE


@pytest.mark.parametrize(
    ("deeds", "outcome"),
    [
        ((b"220 hi\r\n", LISTEN, b"250-hi\r\n250 8BITMIME\r\n", LISTEN, LINE, LISTEN, b"221 bye\r\n"), "answered, FIN"),
        ((LINE, LISTEN), "incomplete, FIN"),
        ((b"220 hi\r\n", LISTEN, b"250 hi\r\n", LISTEN, LINE, LISTEN, b"221 by"), "incomplete, FIN"),
        ((b"220 hi\r\n", LISTEN, b"250 hi\r\n", LISTEN, b"250 ok\r\n", LISTEN, b"221 bye\r\n"), "wrong octets"),
        ((b"220 hi\r\n250 hi\r\n",), "wrong octets"),
        ((b"220 hi\r\n", LISTEN, b"250 hi\r\n", LISTEN, LINE, LISTEN, b"221 bye\r\n221 bye\r\n"), "wrong octets"),
    ],
)
def test_load_tells_dialogues_apart(deeds: tuple[bytes | str, ...], outcome: str) -> None:
    """A dialogue is whole when mail is refused and QUIT is answered, each with one reply."""
    seen = two_clients(*deeds, FIN, script=DIALOGUE)
    assert list(seen) == [outcome]


@pytest.mark.parametrize("loop", [("--clients", "4"), ("--rate", "50")])
def test_load_of_a_closed_port_stops_after_a_second(loop: tuple[str, str], tmp_path: Path) -> None:
    """Where nobody listens there is nothing to measure: it stops long before its duration, and fails."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{nobody.getsockname()[1]}"
        text, found = bench("load", target, *loop, "--duration", "3600", status=1, json_path=tmp_path / "load.json")
    assert "stopped after a second in which no connection was answered: refused" in text
    assert set(found["outcomes"]) <= {"refused", "unfinished"}


def test_a_lost_line_fails_the_run(tmp_path: Path) -> None:
    """A server that cuts off its line gives exit status 1, and the report counts what was lost."""
    with serving(LINE[:5], FIN) as server:
        text, found = bench(
            *("load", server.target, "--clients", "1", "--connections", "3"), status=1, json_path=tmp_path / "load.json"
        )
    assert found["lost"] == 3
    assert "bench: 3 of 3 connections did not get the whole line" in text


@pytest.mark.parametrize("target", ["192.0.2.1:25", "[2001:db8::1]:25", "0.0.0.0:25"])
def test_load_refuses_a_target_that_is_not_loopback(target: str) -> None:
    """Another host is not loaded unless the user states that it is theirs."""
    text, _ = bench("load", target, status=2)
    assert "--yes-i-run-this-server" in text
    assert load.resolve(target, allow_any=True)[1] == 25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:99999",), "'localhost:99999': give HOST:PORT or [IPv6]:PORT, with a port from 1 to 65535"),
        (("localhost",), "'localhost': give HOST:PORT"),
        (("localhost:0",), "'localhost:0': give HOST:PORT"),
        ((":25",), "':25': give HOST:PORT"),
        (("localhost:٢٥",), "give HOST:PORT"),
        (("nothing.invalid:25",), "'nothing.invalid': "),
        (("a..b:25",), "'a..b:25': give HOST:PORT"),
        (("::1:25",), "'::1:25': give HOST:PORT"),
        (("[localhost]:25",), "'[localhost]:25': give HOST:PORT"),
        (("127.0.0.1:" + "9" * 5000,), "...: give HOST:PORT"),
        (("127.0.0.1:25", "--connections", "9" * 5000), "... is not a whole number from 1 to 1000000"),
        (("127.0.0.1:25", "--clients", "2", "--rate", "5"), "--clients is a closed loop, --rate an open one"),
        (("127.0.0.1:25", "--clients", "0"), "--clients: '0' is not a whole number from 1 to 1000000"),
        (("127.0.0.1:25", "--clients", "many"), "--clients: 'many' is not a whole number"),
        (("127.0.0.1:25", "--rate", "0"), "--rate: '0' is not a number from 0.001 to 1000000"),
        (("127.0.0.1:25", "--rate", "nan"), "--rate: 'nan' is not a number from 0.001 to 1000000"),
        (("127.0.0.1:25", "--rate", "1e300"), "--rate: '1e300' is not a number from 0.001 to 1000000"),
        (("127.0.0.1:25", "--duration", "-1"), "--duration: '-1' is not a number from 0.001 to 1000000"),
        (("127.0.0.1:25", "--timeout", "x"), "--timeout: 'x' is not a number from 0.001 to 1000000"),
        (("127.0.0.1:25", "--connections", "1.5"), "--connections: '1.5' is not a whole number"),
        (("127.0.0.1:25", "--json", "/nowhere/x.json"), "cannot write to /nowhere/x.json"),
        (("127.0.0.1:25", "--json", "/"), "cannot write to /"),
        (("127.0.0.1:25", "--json", "x" * 300), "cannot write to xxx"),
        (("127.0.0.1:25", "--clients", "1_0"), "--clients: '1_0' is not a whole number from 1 to 1000000"),
        (("127.0.0.1:25", "--rate", "\u0665"), "--rate: '\\u0665' is not a number from 0.001 to 1000000"),
        (("127.0.0.1:25", "--no-such"), "unrecognized arguments: --no-such"),
        ((), "required: HOST:PORT"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(arguments: tuple[str, ...], message: str) -> None:
    """Whatever is wrong with an argument of `load` is stated before anything is measured; exit status 2."""
    text, _ = bench("load", *arguments, status=2)
    assert message in text
    assert text.count("\n") == 1


def test_more_clients_than_open_files_is_one_clear_line() -> None:
    """A limit of open files below `--clients` is reported before the run, with the remedy."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text, _ = bench("load", "127.0.0.1:25", "--clients", str(min(hard, 1_000_000)), status=2)
    assert "raise `ulimit -Hn`" in text


def test_ctrl_c_reports_what_there_was(daemon: Daemon, tmp_path: Path) -> None:
    """SIGINT to the whole group, as a terminal sends it, ends a run at once with its report and no traceback."""
    path = tmp_path / "bench.json"
    arguments = ["load", at(daemon), "--rate", "100", "--duration", "60", "--json", str(path)]
    with subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-m", "bench", *arguments],  # a background job ignores it
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    ) as process:
        daemon.wait_for(lambda: int(daemon.stats()["connections"]) > 20, "some load")
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err == "bench: interrupted: this is what there was until then\n"
    assert "time to FIN" in out
    assert json.loads(path.read_text())["outcomes"]["answered, FIN"] > 10  # the server counts them before they do


def test_a_second_of_little_load_starts_one_connection(daemon: Daemon) -> None:
    """A rate that makes less than half a connection within the duration still tries the server once."""
    tally = client.run(Plan((daemon.address,), rate=0.1, seconds=0.2))
    assert tally.outcomes == {Outcome.ANSWERED: 1}


def test_a_reader_that_has_gone_is_no_error(daemon: Daemon, tmp_path: Path) -> None:
    """Into a pipe that nobody reads, as with head(1), a command ends quietly, and its files are whole."""
    reading, writing = os.pipe()
    os.close(reading)
    path = tmp_path / "load.json"
    arguments = ("load", at(daemon), "--connections", "10", "--json", str(path))
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments], stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(path.read_text())["started"] == 10


@pytest.mark.parametrize("full", ["stdout", "json"])
def test_a_report_that_cannot_be_written_is_one_clear_line(daemon: Daemon, full: str, tmp_path: Path) -> None:
    """A full disk, behind the standard output or a file, is reported once; what is elsewhere is whole."""
    files = {"stdout": tmp_path / "stdout", "json": tmp_path / "json"} | {full: Path("/dev/full")}
    arguments = ("load", at(daemon), "--connections", "10", "--json", str(files["json"]))
    with files["stdout"].open("w") as stdout:
        command = [sys.executable, "-m", "bench", *arguments]
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (1, b"bench: failed: No space left on device\n")
    if full == "json":
        assert "answered, FIN" in files["stdout"].read_text()
    else:
        assert json.loads(files["json"].read_text())["started"] == 10


def test_without_a_standard_error_the_report_is_printed(daemon: Daemon) -> None:
    """Started with stderr closed, a command still measures and reports."""
    command = f"exec {sys.executable} -m bench load {at(daemon)} --connections 10 2>&-"
    done = subprocess.run(["/bin/sh", "-c", command], stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    assert "answered, FIN" in done.stdout


@pytest.mark.parametrize("columns", [0, 20])
def test_a_terminal_shows_rate_outcomes_and_time_left(daemon: Daemon, columns: int) -> None:
    """The line of progress has what a user wants to know meanwhile, fits the terminal, and is gone afterwards."""
    import pty
    import termios

    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(stderr, (24, columns))
    arguments = ["load", at(daemon), "--rate", "100", "--duration", "0.5"]
    command = [sys.executable, "-m", "bench", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr):
        os.close(stderr)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert columns or re.search("/s: answered, FIN .* s left", shown)
    assert max(map(len, shown.split("\r\x1b[K"))) < (columns or 80)
    assert shown.endswith("\x1b[K")
