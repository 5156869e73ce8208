"""The responder's metrics, read the way Prometheus reads them, from the real daemon."""

import contextlib
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults import failing
from scrapes import WITH_METRICS, metrics_address, request, scrape
from support import LINE, PATIENCE, Start, connect, read_all, require, require_root, require_tools, run_cli

import nullsmtpd
from nullsmtpd import __version__

NAMES = {
    *(f"nullsmtpd_{name}_total" for name in ("connections", "cut_short", "drained", "sessions", "send_errors")),
    *("nullsmtpd_accept_errors_total", "nullsmtpd_access_suppressed_total"),
    *(f"nullsmtpd_{name}" for name in ("lingering", "draining", "talking", "build_info")),
    *("process_cpu_seconds_total", "process_resident_memory_bytes", "process_virtual_memory_bytes"),
    *("process_start_time_seconds", "process_open_fds", "process_max_fds"),
}


def test_metrics_are_the_counters_of_the_stats_line(start: Start) -> None:
    """Every counter and gauge, and nothing else but the process and the build; accept errors by errno."""
    daemon = start(*WITH_METRICS, "--linger", "600", "--max-lingering", "10")
    with contextlib.ExitStack() as stack:
        for number in range(1, 21):
            client = stack.enter_context(connect(daemon.address))
            assert read_all(client) == LINE
            daemon.wait_for(lambda n=number: daemon.stats()["connections"] == str(n), "its turn")  # type: ignore[misc]
        found, stats = scrape(daemon), daemon.stats()
        for name in ("connections", "cut_short", "drained", "sessions", "send_errors", "access_suppressed"):
            assert found[f"nullsmtpd_{name}_total"] == int(stats[name])
        for name in ("lingering", "draining", "talking"):
            assert found[f"nullsmtpd_{name}"] == int(stats[name])
        assert found["nullsmtpd_connections_total"] == 20
        assert found["nullsmtpd_cut_short_total"] == 20 - found["nullsmtpd_lingering"] > 0
    assert {name.partition(":")[0] for name in found} == NAMES
    errors = ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")  # there from the start: an alert compares with what was before
    assert [found[f"nullsmtpd_accept_errors_total:{name}"] for name in errors] == [0] * 4


def test_accept_errors_are_counted_by_their_errno(start: Start, tmp_path: Path) -> None:
    """Those that nobody expects have a sample of their own."""
    daemon = start(*WITH_METRICS)
    with failing(daemon, tmp_path / "trace", "accept4:error=EPROTO:when=1..2"):
        for _ in range(3):
            with connect(daemon.address) as client:
                assert read_all(client) == LINE
    found = scrape(daemon)
    assert found["nullsmtpd_accept_errors_total:EPROTO"] == 2
    assert found["nullsmtpd_accept_errors_total:EMFILE"] == 0
    assert daemon.stats()["accept_errors"] == "EPROTO:2"


def test_a_session_is_a_gauge_while_it_lasts_and_counted_for_good(start: Start) -> None:
    """nullsmtpd_talking and nullsmtpd_sessions_total."""
    daemon = start(*WITH_METRICS, "--mode", "mail")
    with connect(daemon.address) as client:
        assert client.recv(4) == b"220 "
        assert scrape(daemon)["nullsmtpd_talking"] == 1
        client.sendall(b"QUIT\r\n")
        read_all(client)
    daemon.wait_for(lambda: scrape(daemon)["nullsmtpd_talking"] == 0, "the end of the session")
    assert scrape(daemon)["nullsmtpd_sessions_total"] == scrape(daemon)["nullsmtpd_connections_total"] == 1


def test_the_build_is_described(start: Start) -> None:
    """nullsmtpd_build_info has the versions and the mode as labels, and no other metric has any but errno."""
    _, text = request(start(*WITH_METRICS, "--mode", "session"))
    info = next(line for line in text.splitlines() if line.startswith("nullsmtpd_build_info{"))
    python = ".".join(map(str, sys.version_info[:3]))
    assert re.fullmatch(
        rf'nullsmtpd_build_info{{version="{__version__}",mode="session",python="{python}",uvloop="[\d.]+"}} 1', info
    )
    assert set(re.findall(r"([a-z_]+)=\"", text.replace(info, ""))) == {"errno"}


def test_promtool_finds_nothing_wrong_with_them(start: Start) -> None:
    """Neither with the format nor with names, help texts and units."""
    require_tools("promtool")
    _, text = request(start(*WITH_METRICS, "--access-log", "--mode", "mail"))
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


class Proc:
    """What proc(5) shows of a process."""

    def __init__(self, pid: int) -> None:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = os.sysconf("SC_CLK_TCK")
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        self.cpu = (int(fields[11]) + int(fields[12])) / ticks
        self.started = booted + int(fields[19]) / ticks
        self.virtual = int(fields[20])
        self.resident = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")


def test_process_metrics_are_what_the_kernel_shows(start: Start) -> None:
    """CPU, memory and start time beside /proc/PID/stat, before and after the scrape."""
    daemon = start(*WITH_METRICS)
    scrape(daemon)  # loads what it takes
    before, found, after = Proc(daemon.pid), scrape(daemon), Proc(daemon.pid)
    assert before.cpu <= found["process_cpu_seconds_total"] <= after.cpu
    assert found["process_virtual_memory_bytes"] == after.virtual
    assert found["process_resident_memory_bytes"] == pytest.approx(after.resident, rel=0.05)
    assert found["process_start_time_seconds"] == pytest.approx(after.started, abs=0.5)


@pytest.mark.parametrize("user", [None, "nobody"])
def test_open_files_are_what_the_kernel_shows(start: Start, user: str | None) -> None:
    """Of a process that has dropped its privileges too; the connection of the scrape is one of them."""
    if user:
        require_root()
    daemon = start(*WITH_METRICS, "--linger", "600", *(("--user", user) if user else ()), nofile=512)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            read_all(stack.enter_context(connect(daemon.address)))
        found = scrape(daemon)
        assert found["process_open_fds"] > 20
        assert found["process_max_fds"] == 512
        daemon.wait_for(lambda: scrape(daemon)["process_open_fds"] == daemon.descriptors() + 1, "all of them")


def test_metrics_are_served_when_the_package_cannot_be_read_any_more(start: Start, tmp_path: Path) -> None:
    """All of it is loaded before privileges are dropped."""
    require_root()
    private = tmp_path / "private"
    shutil.copytree(Path(nullsmtpd.__file__).parent, private / "nullsmtpd")
    private.chmod(0o700)
    env = {"PYTHONPATH": str(private), "PYTHONSAFEPATH": "1"}
    daemon = start(*WITH_METRICS, "--user", "nobody", "--mode", "mail", "--access-log", env=env)
    with connect(daemon.address) as client:
        client.sendall(b"QUIT\r\n")
        assert read_all(client).startswith(b"220 ")
    assert scrape(daemon)["nullsmtpd_connections_total"] == 1
    assert "Traceback" not in daemon.log
    assert daemon.stop() == 0


def test_without_descriptors_a_reader_waits_and_nothing_spins(start: Start) -> None:
    """It takes no CPU time to speak of meanwhile, and the reader is answered once there are descriptors."""
    require(sys.platform == "linux", "prlimit")
    daemon = start(*WITH_METRICS)
    scrape(daemon)
    limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (5, 512))
    with connect(metrics_address(daemon)) as reader:
        reader.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        before = Proc(daemon.pid).cpu
        time.sleep(1)  # the time in which it must not spin
        assert Proc(daemon.pid).cpu - before < 0.25
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (512, 512))
        assert read_all(reader).startswith(b"HTTP/1.1 200 OK\r\n")
    assert limits[0] > 5
    assert daemon.stop() == 0


def test_without_room_in_epoll_a_reader_waits(start: Start, tmp_path: Path) -> None:
    """At fs.epoll.max_user_watches, epoll(7), the listening socket itself cannot be watched again for a while."""
    daemon = start(*WITH_METRICS)
    scrape(daemon)
    trace = tmp_path / "trace"
    with contextlib.ExitStack() as stack:
        with failing(daemon, trace, "epoll_ctl:error=ENOSPC"):
            reader = stack.enter_context(connect(metrics_address(daemon)))
            reader.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            daemon.wait_for(lambda: trace.read_text().count("EPOLL_CTL_ADD") >= 3, "two tries to accept again")
        with contextlib.suppress(ConnectionError):
            read_all(reader)
    scrape(daemon)


def test_a_reader_that_is_connected_gets_the_counters_though_descriptors_run_out(start: Start) -> None:
    """When an operator needs them most; only what /proc would have to be opened for is left out."""
    require(sys.platform == "linux", "prlimit")
    daemon = start(*WITH_METRICS)
    with connect(metrics_address(daemon)) as reader:
        reader.sendall(b"GET /metrics HTTP/1.0\r\n")
        daemon.stats()
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (5, 5))
        reader.sendall(b"Host: x\r\n\r\n")
        response = read_all(reader).decode()
    assert response.startswith("HTTP/1.1 200 OK\r\n")
    assert "\nnullsmtpd_connections_total 0\n" in response
    assert not daemon.lines("internal-error")


def test_a_port_that_is_taken_names_the_option() -> None:
    """One line and exit status 1; no client was answered by then."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        run = run_cli("--listen", "127.0.0.1:0", "--metrics", address)
    assert run.returncode == 1
    assert run.stderr.startswith(f"nullsmtpd: --metrics {address}: Address already in use; ")
    assert run.stderr.count("\n") == 1


def test_they_take_no_thread_and_no_library(start: Start) -> None:
    """The event loop itself serves them; prometheus-client is not loaded although it is installed."""
    daemon = start(*WITH_METRICS)
    scrape(daemon)
    assert len(os.listdir(f"/proc/{daemon.pid}/task")) == 1
    assert "prometheus" not in Path(f"/proc/{daemon.pid}/maps").read_text()
    without = (
        "import sys; sys.modules['prometheus_client'] = None; from nullsmtpd.__main__ import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", without, "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert " metrics address=" in process.stderr.readline()
        process.terminate()
        assert process.wait(PATIENCE) == 0
