"""The numbers for Prometheus, read the way Prometheus reads them, from the real daemon."""

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import LINE, PATIENCE, Daemon, Start, connect, read_all, require_root, require_tools, run_cli

import nullsmtpd
from nullsmtpd import __version__, metrics_server
from nullsmtpd.responder.counters import Counters
from nullsmtpd.responder.metrics import serve_metrics
from nullsmtpd.runtime.metrics_server import MAX_SCRAPES, serve_on

WITH_METRICS = ("--metrics", "127.0.0.1:0")
NAMES = {
    *(f"nullsmtpd_{name}_total" for name in ("connections", "cut_short", "drained", "sessions", "send_errors")),
    *("nullsmtpd_accept_errors_total", "nullsmtpd_access_left_out_total", "nullsmtpd_worker_restarts_total"),
    *(f"nullsmtpd_{name}" for name in ("lingering", "draining", "talking", "workers", "build_info")),
    *("process_cpu_seconds_total", "process_resident_memory_bytes", "process_virtual_memory_bytes"),
    *("process_start_time_seconds", "process_open_fds", "process_max_fds"),
}


def metrics_address(daemon: Daemon) -> tuple[str, int]:
    match = re.search(r" metrics address=([^:]+):(\d+)$", daemon.log, re.MULTILINE)
    assert match
    return match[1], int(match[2])


def request(daemon: Daemon, method: str = "GET", path: str = "/metrics") -> tuple[int, str]:
    connection = http.client.HTTPConnection(*metrics_address(daemon), timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()


def scrape(daemon: Daemon) -> dict[str, float]:
    """Return each sample's value by its name, and by the value of its label where it has one."""
    status, text = request(daemon)
    assert status == 200
    return {
        ":".join([sample.name, *sample.labels.values()]) if "errno" in sample.labels else sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_numbers_are_those_of_the_stats_line(start: Start, workers: str) -> None:
    """Every counter, summed; levels are those of now; no label but errno and what was built."""
    daemon = start(*WITH_METRICS, "--workers", workers, "--linger", "600")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(daemon.address)) for _ in range(20)]
        assert [read_all(client) for client in clients] == [LINE] * 20
        daemon.wait_for(lambda: daemon.stats()["lingering"] == "20", "all of them lingering")
        numbers = scrape(daemon)
        stats = daemon.stats()
        for name in ("connections", "cut_short", "drained", "sessions", "send_errors", "worker_restarts"):
            assert numbers[f"nullsmtpd_{name}_total"] == int(stats[name])
        for name in ("lingering", "draining", "talking"):
            assert numbers[f"nullsmtpd_{name}"] == int(stats[name])
        assert numbers["nullsmtpd_connections_total"] == numbers["nullsmtpd_lingering"] == 20
        assert numbers["nullsmtpd_workers"] == int(workers)
    assert {name.partition(":")[0] for name in numbers} == NAMES
    assert numbers["nullsmtpd_accept_errors_total:EMFILE"] == 0


def test_sessions_are_counted_while_they_last(start: Start) -> None:
    """A dialogue is a level while it is on, and a total for good."""
    daemon = start(*WITH_METRICS, "--mode", "mail", "--workers", "2")
    with connect(daemon.address) as client:
        assert client.recv(4) == b"220 "
        assert scrape(daemon)["nullsmtpd_talking"] == 1
        client.sendall(b"QUIT\r\n")
        read_all(client)
    daemon.wait_for(lambda: scrape(daemon)["nullsmtpd_talking"] == 0, "the end of the session")
    assert scrape(daemon)["nullsmtpd_sessions_total"] == 1


def test_totals_never_fall_while_workers_are_replaced(start: Start) -> None:
    """Whenever one reads: no connection is forgotten, none counted twice, and CPU time only grows."""
    daemon = start(*WITH_METRICS, "--workers", "2")
    before, server = scrape(daemon), daemon.children()[-1]
    for answered in range(1, 31):
        with connect(daemon.address) as client:
            assert read_all(client) == LINE
        if answered % 10 == 0:
            os.kill(next(pid for pid in daemon.children() if pid != server), signal.SIGKILL)
        numbers = scrape(daemon)
        assert numbers["nullsmtpd_connections_total"] == answered
        assert numbers["process_cpu_seconds_total"] >= before["process_cpu_seconds_total"]
        before = numbers
    daemon.wait_for(lambda: scrape(daemon)["nullsmtpd_worker_restarts_total"] == 3, "three successors")
    daemon.wait_for(lambda: scrape(daemon)["nullsmtpd_workers"] == 2, "their start")


def test_a_dead_metrics_process_comes_back(start: Start) -> None:
    """It is watched as the workers are, and is none of them."""
    daemon = start(*WITH_METRICS, "--workers", "2")
    server = daemon.children()[-1]
    os.kill(server, signal.SIGKILL)
    daemon.wait_for(lambda: len(daemon.children()) == 3 and server not in daemon.children(), "a successor")
    assert scrape(daemon)["nullsmtpd_worker_restarts_total"] == 0
    assert "name=metrics" in daemon.lines("process-ended")[0]


def test_the_build_is_described(start: Start) -> None:
    """nullsmtpd_build_info has what an operator asks for first."""
    _, text = request(start(*WITH_METRICS, "--mode", "session"))
    info = next(line for line in text.splitlines() if line.startswith("nullsmtpd_build_info{"))
    python = ".".join(map(str, sys.version_info[:3]))
    assert f'version="{__version__}"' in info
    assert f'python="{python}"' in info
    assert 'mode="session"' in info
    assert 'uvloop="' in info


def test_descriptors_are_those_of_the_process(start: Start) -> None:
    """process_open_fds is what /proc has, but for the scrape itself; process_max_fds the soft limit."""
    daemon = start(*WITH_METRICS, "--linger", "600", nofile=512)
    with contextlib.ExitStack() as stack:
        for _ in range(20):  # clients that stay are counted too
            read_all(stack.enter_context(connect(daemon.address)))
        numbers = scrape(daemon)
        assert numbers["process_open_fds"] > 20
        assert abs(numbers["process_open_fds"] - daemon.descriptors()) <= 4
        assert numbers["process_max_fds"] == 512


def test_descriptors_are_known_of_other_users_too(start: Start) -> None:
    """After --user no process may look into the other's /proc; the numbers are there all the same."""
    require_root()
    daemon = start(*WITH_METRICS, "--workers", "2", "--user", "nobody")

    def is_right() -> bool:
        real = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in [daemon.pid, *daemon.children()])
        return abs(scrape(daemon)["process_open_fds"] - real) <= 4 * 4

    daemon.wait_for(is_right, "the number of all of their descriptors, once all have started")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_numbers_are_served_by_who_may_not_read_the_package(start: Start, tmp_path: Path, workers: str) -> None:
    """All of it is loaded before root is given up."""
    require_root()
    private = tmp_path / "private"
    shutil.copytree(Path(nullsmtpd.__file__).parent, private / "nullsmtpd")
    private.chmod(0o700)
    env = {"PYTHONPATH": str(private), "PYTHONSAFEPATH": "1"}
    daemon = start(*WITH_METRICS, "--user", "nobody", "--workers", workers, "--mode", "mail", "--access-log", env=env)
    with connect(daemon.address) as client:
        client.sendall(b"QUIT\r\n")
        assert read_all(client).startswith(b"220 ")
    assert scrape(daemon)["nullsmtpd_connections_total"] == 1
    assert "Traceback" not in daemon.log
    assert daemon.stop() == 0


def test_without_descriptors_readers_wait_and_nobody_spins(start: Start) -> None:
    """A scrape that cannot be accepted uses no CPU to speak of, and the end is the end all the same."""
    require_tools("prlimit")
    daemon = start(*WITH_METRICS)
    scrape(daemon)
    subprocess.run(["prlimit", f"--pid={daemon.pid}", "--nofile=5:"], check=True)
    with connect(metrics_address(daemon)):
        before = cpu_ticks(daemon)
        time.sleep(1)
        assert cpu_ticks(daemon) - before < os.sysconf("SC_CLK_TCK") / 4
        assert daemon.stop() == 0


def cpu_ticks(daemon: Daemon) -> int:
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_thread_that_cannot_start_costs_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many readers were turned away for want of threads, the next one is served."""
    serve_in_thread, failing = socketserver.ThreadingMixIn.process_request, list(range(MAX_SCRAPES + 1))

    def process_request(*arguments: Any) -> None:  # noqa: ANN401 - whatever they are, they are passed on
        if failing:
            failing.pop()
            raise RuntimeError("can't start new thread")
        serve_in_thread(*arguments)

    monkeypatch.setattr(socketserver.ThreadingMixIn, "process_request", process_request)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serve_metrics([listener], [Counters()], "close")
        address = listener.getsockname()
        while failing:
            with connect(address) as reader:
                assert read_all(reader) == b""
        with connect(address) as reader:
            reader.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert read_all(reader).startswith(b"HTTP/1.0 200 OK\r\n")


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/favicon.ico", "/%2e%2e/etc/passwd", "/x" * 1000])
def test_other_paths_are_not_there(start: Start, path: str) -> None:
    """404, and nothing of the path comes back."""
    status, text = request(start(*WITH_METRICS), path=path)
    assert (status, text) == (404, "The numbers are at /metrics.\n")


def test_other_methods_are_refused(start: Start) -> None:
    """Reading is all there is."""
    assert [request(start(*WITH_METRICS), method)[0] for method in ("POST", "DELETE", "NONSENSE")] == [405] * 3


@pytest.mark.parametrize(
    "octets",
    [
        b"\x00\xff" * 100,
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"A" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 500,
    ],
)
def test_nonsense_is_not_logged_and_harms_nobody(start: Start, octets: bytes) -> None:
    """The log has no word of it, and no traceback; the next reader gets the numbers."""
    daemon = start(*WITH_METRICS)
    logged = daemon.log
    with connect(metrics_address(daemon)) as reader, contextlib.suppress(OSError):
        reader.sendall(octets)
        reader.shutdown(socket.SHUT_WR)
        read_all(reader)
    assert scrape(daemon)["nullsmtpd_workers"] == 1
    assert daemon.log == logged


@pytest.mark.parametrize(
    "accept", ["text/plain;version=abc", "text/plain;version=1..0", "application/openmetrics-text; version=x"]
)
def test_who_asks_for_a_format_that_there_is_not_gets_the_usual_one(start: Start, accept: str) -> None:
    """Not a failure, and no word of it in the log (RFC 9110 §12.5.1: what is accepted may be disregarded)."""
    daemon = start(*WITH_METRICS)
    logged = daemon.log
    connection = http.client.HTTPConnection(*metrics_address(daemon), timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics", headers={"Accept": accept})
        response = connection.getresponse()
        assert (response.status, b"nullsmtpd_connections_total 0.0" in response.read()) == (200, True)
    assert daemon.log == logged


def test_what_an_application_fails_of_is_written_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    """A full pipe as stderr would keep the thread that writes to it, and with it a place, for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serve_on(listener, lambda _environ, _start_response: 1 // 0)
        with connect(listener.getsockname()) as reader:
            reader.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert read_all(reader).startswith(b"HTTP/1.0 500 ")
    assert capfd.readouterr().err == ""


def test_silent_readers_keep_nobody_from_the_line(start: Start) -> None:
    """Beyond a few, readers are turned away; clients never notice, and numbers come back when a place is free."""
    daemon = start(*WITH_METRICS)
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_SCRAPES):
            stack.enter_context(connect(metrics_address(daemon)))
        with connect(metrics_address(daemon)) as one_too_many:
            assert read_all(one_too_many) == b""
        with connect(daemon.address) as client:
            assert read_all(client) == LINE
    daemon.wait_for(lambda: _answers(daemon), "the numbers")


def test_readers_that_dawdle_make_room_once_they_have_had_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """An octet now and then keeps a place for some seconds, and then only as long as nobody else wants it."""
    monkeypatch.setattr(metrics_server, "SCRAPE_SECONDS", 0.5)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        serve_metrics([listener], [Counters()], "close")
        idle = threading.active_count()
        dawdlers = [stack.enter_context(connect(listener.getsockname())) for _ in range(MAX_SCRAPES)]
        began = time.monotonic()
        for octet in (b"G", b"E", b"T"):
            for dawdler in dawdlers:
                dawdler.sendall(octet)
            time.sleep(0.2)
        assert time.monotonic() - began > 0.5
        for _ in range(3):
            deadline, answer = time.monotonic() + PATIENCE, b""
            while not answer and time.monotonic() < deadline:  # on a busy machine the place is left a moment later
                with connect(listener.getsockname()) as reader, contextlib.suppress(OSError):
                    reader.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                    answer = read_all(reader)
            assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
            while threading.active_count() >= idle + MAX_SCRAPES and time.monotonic() < deadline:
                time.sleep(0.001)  # this reader's place is to be free for the next, who would else take a dawdler's
        assert read_all(dawdlers[0]) == b""
        dawdlers[1].sendall(b" /metrics HTTP/1.0\r\n\r\n")
        assert read_all(dawdlers[1]).startswith(b"HTTP/1.0 200 OK\r\n")


def _answers(daemon: Daemon) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return scrape(daemon)["nullsmtpd_connections_total"] == 1
    return False


def test_a_port_that_is_taken_names_the_option() -> None:
    """One line, status 1, and no client was answered by then."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        run = run_cli("--listen", "127.0.0.1:0", "--metrics", address)
    assert run.returncode == 1
    assert run.stderr.startswith(f"nullsmtpd: --metrics {address}: Address already in use; ")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_without_the_library_it_says_what_to_install(workers: str) -> None:
    """One line and status 2, before any socket is bound."""
    without = (
        "import sys; sys.modules['prometheus_client'] = None; from nullsmtpd.__main__ import main; sys.exit(main())"
    )
    run = subprocess.run(
        [sys.executable, "-c", without, "--listen", "127.0.0.1:0", *WITH_METRICS, "--workers", workers],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (run.returncode, run.stderr) == (
        2,
        "nullsmtpd: --metrics needs prometheus-client; install it: pip install 'nullsmtpd-521[metrics]'\n",
    )


def test_the_library_is_not_loaded_unasked(daemon: Daemon) -> None:
    """Without --metrics nothing of it is in memory."""
    maps = Path(f"/proc/{daemon.pid}/maps").read_text()
    assert "mmap.cpython" not in maps
    assert len(os.listdir(f"/proc/{daemon.pid}/task")) == 1


@pytest.mark.usefixtures("no_thread")
def test_where_no_thread_can_be_had_the_start_fails_as_for_other_limits() -> None:
    """A limit of processes is an error of the system to who starts the server, and so one line to the operator."""
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(OSError, match="can't start new thread"):
        serve_on(listener, lambda _environ, _start_response: [])
