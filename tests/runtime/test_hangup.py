"""Signals that other daemons die of, and what a parent may leave to the process: masks, dispositions, a terminal."""

import contextlib
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from faults import stopped
from support import LINE, PATIENCE, Daemon, Start, connect, read_all, require, require_tools, running

# These tests may themselves run under nohup(1).
DEFAULT_SIGHUP = ("env", "--default-signal=HUP")

#: A process of its own session has no controlling terminal, whatever this one has.
NO_TERMINAL = ("setsid", *DEFAULT_SIGHUP)

# What a service is not meant to stop, to be stopped, or to be told by.
USELESS = [
    *("SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGPWR", "SIGSTKFLT", "SIGTTOU", "SIGTTIN", "SIGCHLD"),
    *("SIGWINCH", "SIGURG", "SIGPIPE", "SIGXFSZ", "SIGCONT"),
]


@pytest.fixture(autouse=True)
def linux() -> None:
    require(sys.platform == "linux", "setsid(1) and Linux's signals")
    require_tools("setsid")


@pytest.mark.parametrize("arguments", [(), ("--mode", "mail", "--hostname", "mx.example.org")])
def test_sighup_without_a_terminal_is_logged_and_ignored(start: Start, arguments: Sequence[str]) -> None:
    """Sent by logrotate's postrotate and supervisorctl: it resets no client in the queue or in a dialogue."""
    daemon = start(*arguments, prefix=NO_TERMINAL)
    with contextlib.ExitStack() as held:
        early = held.enter_context(connect(daemon.address))
        greeting = early.recv(99)
        with stopped(daemon):
            waiting = [held.enter_context(connect(daemon.address)) for _ in range(50)]
            daemon.process.send_signal(signal.SIGHUP)
        assert {client.recv(99) for client in waiting} == {greeting}
        daemon.wait_for(lambda: daemon.lines("sighup-ignored"), "the line")
        if arguments:
            early.sendall(b"QUIT\r\n")
            assert read_all(early).startswith(b"221 ")
    assert len(daemon.lines("sighup-ignored")) == 1
    assert daemon.stop() == 0


def test_a_sighup_that_the_parent_ignores_stays_ignored(start: Start) -> None:
    """nohup(1): not even logged."""
    daemon = start(prefix=(*NO_TERMINAL, "nohup"))
    for _ in range(3):
        daemon.process.send_signal(signal.SIGHUP)
    with connect(daemon.address) as client:
        assert read_all(client) == LINE
    assert daemon.stop() == 0
    assert not daemon.lines("sighup-ignored")


def test_signals_without_a_use_are_ignored(start: Start) -> None:
    """Real-time signals too: the process serves on, and logs nothing."""
    daemon = start(prefix=NO_TERMINAL)
    logged = daemon.log
    numbers = [getattr(signal, name) for name in USELESS] + list(range(signal.SIGRTMIN, signal.SIGRTMAX + 1))
    with connect(daemon.address) as early:
        for number in numbers:
            os.kill(daemon.pid, number)
            with connect(daemon.address) as client:
                assert read_all(client) == LINE, number
        assert read_all(early) == LINE
    assert daemon.log == logged
    assert daemon.stop() == 0


ENDING = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]


def block_all() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())


def ignore_all() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)


def started_by(prepare: Callable[[], None], tmp_path: Path) -> AbstractContextManager[Daemon]:
    """Start the daemon from a parent that has prepared its signals in this way."""
    command = [sys.executable, "-m", "nullsmtpd", "--listen", "127.0.0.1:0"]
    return running(command, tmp_path / "log", preexec_fn=prepare)


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("prepare", [block_all, ignore_all])
def test_signals_work_whatever_the_parent_has_done_to_them(
    tmp_path: Path, prepare: Callable[[], None], number: signal.Signals
) -> None:
    """A mask or a disposition is inherited through exec(2); SIGUSR1 and termination work all the same."""
    with started_by(prepare, tmp_path) as daemon:
        assert daemon.stats()["connections"] == "0"
        with connect(daemon.address) as client:
            assert read_all(client) == LINE
        assert daemon.stop(number) == 0
    assert len(daemon.lines("stats")) == 2  # that of SIGUSR1, and that of a shutdown


def test_a_signal_before_the_handlers_are_there_is_not_lost(tmp_path: Path) -> None:
    """SIGUSR1 and SIGHUP wait until the process can handle them; by default they would end it."""
    log_path = tmp_path / "log"
    for _ in range(5):
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [*NO_TERMINAL, sys.executable, "-m", "nullsmtpd", "--listen", "127.0.0.1:0"], stderr=log
            )
        daemon = Daemon(process, log_path)
        try:
            daemon.wait_for(lambda p=process: blocks(p.pid, signal.SIGUSR1), "the mask of the start")  # type: ignore[misc]
            for number in (signal.SIGUSR1, signal.SIGHUP):
                process.send_signal(number)
            daemon.wait_for(daemon.addresses, "a listening line")
            daemon.wait_for(lambda one=daemon: one.lines("sighup-ignored"), "SIGHUP")  # type: ignore[misc]
            assert daemon.stop() == 0
        finally:
            process.kill()
            process.wait()


def blocks(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(next(line for line in status.splitlines() if line.startswith("SigBlk:")).split()[1], 16)
    return bool(mask & 1 << number - 1)


class Terminal:
    """A terminal, of which the test holds the screen."""

    def __init__(self) -> None:
        self.screen, self.keyboard = pty.openpty()

    def hang_up(self) -> None:
        if self.screen >= 0:
            os.close(self.screen)
        self.screen = -1


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.hang_up()
    os.close(opened.keyboard)


def in_terminal(terminal: Terminal, command: Sequence[str], log_path: Path) -> AbstractContextManager[Daemon]:
    """Run a command whose controlling terminal this is; only its log is elsewhere."""
    in_session = ["setsid", "--ctty", *DEFAULT_SIGHUP, *command]
    return running(in_session, log_path, stdin=terminal.keyboard, stdout=terminal.keyboard)


@pytest.mark.parametrize("arguments", [(), ("--mode", "mail", "--hostname", "mx.example.org")])
def test_a_terminal_that_hangs_up_is_a_graceful_shutdown(
    tmp_path: Path, terminal: Terminal, arguments: Sequence[str]
) -> None:
    """As SIGTERM: the accept queue is answered, a dialogue gets its 421, exit status 0."""
    command = [sys.executable, "-m", "nullsmtpd", "--listen", "127.0.0.1:0", *arguments]
    with in_terminal(terminal, command, tmp_path / "log") as daemon, contextlib.ExitStack() as held:
        talking = held.enter_context(connect(daemon.address))
        greeting = talking.recv(99)
        with stopped(daemon):
            waiting = [held.enter_context(connect(daemon.address)) for _ in range(50)]
            terminal.hang_up()
        answers = {read_all(client) for client in waiting}
        assert daemon.process.wait(PATIENCE) == 0
        if arguments:
            goodbye = b"421 4.3.2 mx.example.org Service shutting down\r\n"
            assert answers == {greeting + goodbye}
            assert read_all(talking) == goodbye
        else:
            assert answers == {LINE}
    assert daemon.lines("stats")
    assert not daemon.lines("sighup-ignored")


def test_a_sighup_with_a_terminal_that_is_still_there_is_ignored(tmp_path: Path, terminal: Terminal) -> None:
    """`kill -HUP` is not a hangup."""
    command = [sys.executable, "-m", "nullsmtpd", "--listen", "127.0.0.1:0"]
    with in_terminal(terminal, command, tmp_path / "log") as daemon:
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for(lambda: daemon.lines("sighup-ignored"), "the line")
        with connect(daemon.address) as client:
            assert read_all(client) == LINE
        assert daemon.stop() == 0


def test_in_the_background_of_a_terminal_with_tostop_it_is_not_stopped(terminal: Terminal) -> None:
    """termios(3), TOSTOP: SIGTTOU stops a background job that writes its log; clients would wait for ever."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = 'stty tostop; set -m; "$@" & echo $! ; wait'
    command = [sys.executable, "-m", "nullsmtpd", "--access-log", "--listen", f"127.0.0.1:{port}"]
    with subprocess.Popen(
        ["setsid", "--ctty", "sh", "-c", script, "sh", *command],
        stdin=terminal.keyboard,
        stdout=subprocess.PIPE,
        stderr=terminal.keyboard,
    ) as shell:
        try:
            assert shell.stdout
            pid = int(shell.stdout.readline())
            screen = b""
            while b"listening" not in screen:
                screen += os.read(terminal.screen, 4096)
            for _ in range(10):
                with connect(("127.0.0.1", port)) as client:
                    assert read_all(client) == LINE
            while screen.count(b" connection peer=") < 10:
                screen += os.read(terminal.screen, 4096)
            assert "T (stopped)" not in Path(f"/proc/{pid}/status").read_text()
            assert os.getpgid(pid) != os.tcgetpgrp(terminal.screen)
            os.kill(pid, signal.SIGTERM)
            assert shell.wait(PATIENCE) == 0
        finally:
            shell.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
