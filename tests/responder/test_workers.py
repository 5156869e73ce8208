"""Several processes and their parent: nobody is lost when one of them dies, and all of them end together."""

import contextlib
import functools
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from support import LINE, PATIENCE, Daemon, Start, connect, read_all, require, require_tools, run_cli

from nullsmtpd.responder.cpus import usable_cpus
from nullsmtpd.responder.parent import SHORT_LIFE

CROWD = 64


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def logged_at(line: str) -> float:
    """Return when a line was logged, in seconds."""
    return datetime.fromisoformat(line.partition(" ")[0]).timestamp()


def deaths(daemon: Daemon, name: str) -> list[float]:
    """Return when processes in this place have ended."""
    return [logged_at(line) for line in daemon.lines("process-ended") if f" name={name} " in line]


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not in {PATIENCE} s: {what}")
        time.sleep(0.005)


def stop_process(pid: int) -> None:
    """Stop it as SIGSTOP does, and wait until it stands still."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "a stopped process")


@contextlib.contextmanager
def crowd(daemon: Daemon) -> Iterator[list[socket.socket]]:
    """Connect more clients than any one worker gets."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(daemon.address)) for _ in range(CROWD)]


def answered(clients: list[socket.socket], seconds: float) -> int:
    """Return how many have something to read within this time."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if len(select.select(clients, [], [], left)[0]) == len(clients):
            return len(clients)
        time.sleep(0.01)
    return len(select.select(clients, [], [], 0)[0])


@pytest.mark.parametrize("mode", ["close", "session", "mail"])
def test_all_workers_answer_on_one_port(start: Start, mode: str) -> None:
    """What stops one of two workers keeps a part of the clients waiting: each has a queue, and both are used."""
    daemon = start("--workers", "2", "--mode", mode)
    first, second = daemon.children()
    stop_process(first)
    with crowd(daemon) as clients:
        waiting = CROWD - answered(clients, 1.0)
        assert 0 < waiting < CROWD
        os.kill(first, signal.SIGCONT)
        assert answered(clients, PATIENCE) == CROWD
    assert daemon.children() == [first, second]


def test_a_killed_worker_is_replaced_and_its_queue_is_answered(start: Start) -> None:
    """Those that waited for the dead one get the line from its successor; nobody is reset, nor waits for a second."""
    daemon = start("--workers", "2", "--access-log")
    time.sleep(1.1 * SHORT_LIFE)  # who dies sooner is backed off
    doomed, other = daemon.children()
    stop_process(doomed)
    with crowd(daemon) as clients:
        os.kill(doomed, signal.SIGKILL)
        assert [read_all(client) for client in clients] == [LINE] * CROWD
    daemon.wait_for(lambda: len(daemon.children()) == 2, "a successor")
    assert doomed not in daemon.children()
    assert other in daemon.children()
    assert len(daemon.lines("process-ended")) == 1
    assert f"name=worker-1 pid={doomed} status=SIGKILL" in daemon.lines("process-ended")[0]
    daemon.wait_for(lambda: len(daemon.lines("connection")) == CROWD, "a line for each client")
    last = max(map(logged_at, daemon.lines("connection")))
    assert last - logged_at(daemon.lines("process-ended")[0]) < 1
    stats = daemon.stats()
    assert (stats["connections"], stats["worker_restarts"]) == (str(CROWD), "1")


def test_a_worker_ends_by_its_parents_word_alone(start: Start) -> None:
    """SIGTERM for one worker changes nothing: what is to end is the server."""
    daemon = start("--workers", "2")
    workers = daemon.children()
    os.kill(workers[0], signal.SIGTERM)
    os.kill(workers[1], signal.SIGINT)
    with crowd(daemon) as clients:
        assert [read_all(client) for client in clients] == [LINE] * CROWD
    assert daemon.children() == workers
    assert daemon.stop() == 0


def test_workers_that_die_at_once_are_backed_off(start: Start) -> None:
    """With too few descriptors for an event loop none of them lives; the parent tries a few times, not hundreds."""
    daemon = start("--workers", "2", nofile=14)
    daemon.wait_for(lambda: len(deaths(daemon, "worker-1")) >= 4, "four deaths of a worker")
    lines = daemon.lines("process-ended")
    assert all("status=1" in line for line in lines)
    assert all('error="OSError(24' in line for line in daemon.lines("process-failed"))
    stamps = deaths(daemon, "worker-1")
    assert stamps[3] - stamps[0] >= 0.65  # 0.1, 0.2 and 0.4 s apart, less what is cut off
    assert daemon.sleeps() < 200
    assert "Traceback" not in daemon.log


@contextlib.contextmanager
def daemon_that_cannot_fork(tmp_path: Path, *, until: int) -> Iterator[Daemon]:
    """Start a daemon whose forks fail, but for the first two and those after so many."""
    faulty = tmp_path / "faulty.py"
    faulty.write_text(
        "import errno, itertools, os, sys\n"
        "from nullsmtpd.__main__ import main\n"
        "fork, calls = os.fork, itertools.count(1)\n"
        "def failing():\n"
        f"    if 2 < next(calls) <= {until}:\n"
        "        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "    return fork()\n"
        "os.fork = failing\n"
        "sys.exit(main())\n"
    )
    log_path = tmp_path / "log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, faulty, "--listen", "127.0.0.1:0", "--workers", "2"], stderr=log, env=os.environ
        )
    daemon = Daemon(process, log_path)
    try:
        daemon.wait_for(daemon.addresses, "the start line")
        yield daemon
    finally:
        process.kill()
        process.wait()


def test_a_fork_that_fails_is_tried_again(tmp_path: Path) -> None:
    """No process or no memory left for a successor: a line says so, and it comes when there is room."""
    with daemon_that_cannot_fork(tmp_path, until=4) as daemon:
        os.kill(daemon.children()[0], signal.SIGKILL)
        daemon.wait_for(lambda: len(daemon.children()) == 2 and daemon.lines("process-not-started"), "a successor")
        failed = [line.split(" again_in=") for line in daemon.lines("process-not-started")]
        assert all('name=worker-1 reason="Resource temporarily unavailable"' in line for line, _ in failed)
        assert [float(seconds) / float(failed[0][1]) for _, seconds in failed] == [1, 2]
        assert daemon.stats()["worker_restarts"] == "1"
        assert daemon.stop() == 0


def test_a_fork_that_fails_at_the_end_does_not_lose_the_end(tmp_path: Path) -> None:
    """The other worker still finishes, the counters are logged, and the status is 0."""
    with daemon_that_cannot_fork(tmp_path, until=1000) as daemon:
        doomed, other = daemon.children()
        os.kill(doomed, signal.SIGKILL)
        daemon.wait_for(lambda: daemon.lines("process-not-started"), "a fork that fails")
        assert daemon.stop() == 0
        assert has_ended(other)
        assert len(daemon.lines("stats")) == 1


def test_a_signal_without_a_name_kills_no_more_than_the_worker(start: Start) -> None:
    """A real-time signal is told by its number."""
    daemon = start("--workers", "2")
    os.kill(daemon.children()[0], signal.SIGRTMIN + 1)
    daemon.wait_for(lambda: len(daemon.children()) == 2 and daemon.lines("process-ended"), "a successor")
    assert f"status=-{signal.SIGRTMIN + 1}" in daemon.lines("process-ended")[0]
    assert daemon.stop() == 0


def test_a_worker_that_hangs_does_not_hold_up_the_end(start: Start) -> None:
    """It is killed some seconds after the linger time."""
    daemon = start("--workers", "2", "--linger", "0")
    stop_process(daemon.children()[0])
    assert daemon.stop() == 0
    assert "name=worker-1" in daemon.lines("process-ended")[0]
    assert "status=SIGKILL" in daemon.lines("process-ended")[0]


def test_workers_end_when_their_parent_is_killed(start: Start) -> None:
    """However the parent dies, nobody stays behind with the port."""
    daemon = start("--workers", "3")
    pids = daemon.children()
    address = daemon.address
    daemon.process.kill()
    daemon.process.wait()
    for pid in pids:
        wait_until(functools.partial(has_ended, pid), "the end of a worker")
    with pytest.raises(ConnectionRefusedError):
        connect(address)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to_group", [False, True])
def test_a_signal_ends_all_with_status_0(start: Start, number: signal.Signals, to_group: bool) -> None:  # noqa: FBT001
    """Also when it reaches every process of the group, as Ctrl-C and some service managers have it."""
    daemon = start("--workers", "2", prefix=["setsid"])
    pids = daemon.children()
    with connect(daemon.address) as client:
        assert read_all(client) == LINE
    (os.killpg if to_group else os.kill)(daemon.pid, number)
    assert daemon.process.wait(PATIENCE) == 0
    assert all(has_ended(pid) for pid in pids)
    assert [line.split(" ", 1)[1].split()[0] for line in daemon.log.splitlines()][-1] == "stats"
    assert len(daemon.lines("stats")) == 1
    assert not daemon.lines("process-ended")


def test_who_waits_in_a_dead_workers_queue_is_answered_at_the_end(start: Start) -> None:
    """A worker dies as the end comes: somebody is started for its queue."""
    daemon = start("--workers", "2")
    doomed = daemon.children()[0]
    stop_process(doomed)
    stop_process(daemon.pid)
    with crowd(daemon) as clients:
        os.kill(doomed, signal.SIGKILL)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGCONT)
        assert [read_all(client) for client in clients] == [LINE] * CROWD
    assert daemon.process.wait(PATIENCE) == 0


def test_a_second_signal_ends_all_at_once(start: Start) -> None:
    """Clients that linger are not waited for any longer."""
    daemon = start("--workers", "2", "--linger", "600")
    pids = daemon.children()
    with connect(daemon.address) as client:
        client.sendall(b"EHLO x\r\n")
        assert read_all(client) == LINE
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for(lambda: _is_refused(daemon.address), "the closed port")
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(PATIENCE) == 0
    assert all(has_ended(pid) for pid in pids)
    assert len(daemon.lines("stats")) == 1


def _is_refused(address: tuple[str, int]) -> bool:
    try:
        connect(address).close()
    except (ConnectionRefusedError, ConnectionResetError):  # reset: our SYN was waiting when the port closed
        return True
    return False


def test_counters_are_summed(start: Start) -> None:
    """One line for all, with the totals of those that have died, and the levels of those that live."""
    daemon = start("--workers", "3", "--linger", "600")
    with crowd(daemon) as clients:
        assert [read_all(client) for client in clients] == [LINE] * CROWD
        daemon.wait_for(lambda: daemon.stats()["lingering"] == str(CROWD), "all of them lingering")
        doomed = daemon.children()[0]
        os.kill(doomed, signal.SIGKILL)
        daemon.wait_for(lambda: daemon.lines("process-ended"), "its death")
        stats = daemon.stats()
        assert stats["connections"] == str(CROWD)
        assert int(stats["lingering"]) < CROWD


def test_auto_is_the_number_of_cpus(start: Start) -> None:
    """--workers auto counts those that this process may use; a single one needs no parent."""
    cpus = usable_cpus()
    assert len(start("--workers", "auto").children()) == (cpus if cpus > 1 else 0)
    require_tools("taskset")
    first = min(os.sched_getaffinity(0))
    assert start("--workers", "auto", prefix=["taskset", "-c", str(first)]).children() == []


def test_one_worker_has_no_parent(start: Start) -> None:
    """--workers 1 is the process itself."""
    assert start("--workers", "1").children() == []


def test_a_port_that_another_program_has_is_an_error_all_the_same() -> None:
    """SO_REUSEPORT among our own does not hide that the port is taken, by ourselves even."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        run = run_cli("--listen", address, "--workers", "2")
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith(f"nullsmtpd: --listen {address}: Address already in use; ")


def test_a_worker_that_hangs_is_replaced_under_a_watchdog(start: Start) -> None:
    """One that shows no sign of life for the time that the service manager grants is killed."""
    require(sys.platform == "linux", "Linux")
    daemon = start("--workers", "2", env={"WATCHDOG_USEC": "2000000"})
    hung = daemon.children()[0]
    stop_process(hung)
    daemon.wait_for(lambda: hung not in daemon.children() and len(daemon.children()) == 2, "a successor")
    assert any(f"name=worker-1 pid={hung}" in line for line in daemon.lines("process-hung"))
    with crowd(daemon) as clients:
        assert [read_all(client) for client in clients] == [LINE] * CROWD


def test_idle_workers_and_their_parent_do_not_wake_up(start: Start) -> None:
    """Nobody polls: no process of the family uses the CPU while nobody connects."""
    daemon = start("--workers", "2")
    assert daemon.wake_ups_within(0) == 0  # they have come to rest
    pids = [daemon.pid, *daemon.children()]
    before = [daemon.sleeps(pid) for pid in pids]
    time.sleep(1)
    assert [daemon.sleeps(pid) for pid in pids] == before


def test_who_hangs_since_its_fork_keeps_the_end_from_nobody() -> None:
    """A process that has not even closed its copy of the pipe: the other is told to end all the same, and before it."""
    code = """
import select, time
from nullsmtpd.responder.counters import Counters
from nullsmtpd.responder.parent import Child, Parent
from nullsmtpd.runtime.systemd import Notifier

def work(end):
    print("up", flush=True)
    select.select([end], [], [])
    print("told", flush=True)

parent = Parent(Notifier({}), lambda: None, patience=1.0)
good, hanging = (Child(name, work, Counters()) for name in ("good", "hanging"))
parent.children += [hanging, good]
live = parent._live
parent._live = lambda child: live(child) if child is good else time.sleep(60)
parent.start()
parent.watch()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        process.terminate()
        told, _ = process.communicate(timeout=PATIENCE)
    assert told == b"told\n"
