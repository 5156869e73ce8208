"""What goes wrong around the process: its log, the clock, an address family, its service manager, and being stopped."""

import contextlib
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from activation import command_with, service_manager
from faults import injecting, inside, network, stopped
from scrapes import WITH_METRICS, metrics_address
from support import (
    CLIENTS,
    LINE,
    MODES,
    PATIENCE,
    Daemon,
    Start,
    connect,
    read_all,
    require,
    require_root,
    require_tools,
    running,
)


@contextlib.contextmanager
def closed() -> Iterator[None]:
    """Give no stderr."""
    yield None


@contextlib.contextmanager
def full_disk() -> Iterator[int]:
    """Give a stderr to which nothing can be written, ENOSPC."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


def fill(descriptor: int, octets: int) -> None:
    """Write, so many octets at a time, until there is no room; the next write would block."""
    os.set_blocking(descriptor, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(descriptor, b"x" * octets)
    os.set_blocking(descriptor, True)  # of the open file, which the daemon shares


@contextlib.contextmanager
def full_pipe() -> Iterator[int]:
    """Give a pipe that nobody reads, and that is full."""
    reader, writer = os.pipe()
    fill(writer, 4096)
    yield writer
    for descriptor in (reader, writer):
        os.close(descriptor)


@contextlib.contextmanager
def broken_pipe() -> Iterator[int]:
    """Give a pipe whose reader has gone: EPIPE and SIGPIPE."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@contextlib.contextmanager
def full_socket() -> Iterator[int]:
    """Give a stream socket such as a service manager's log, whose reader has stopped."""
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                writer.send(b"x" * 4096)
        writer.setblocking(True)
        yield writer.fileno()


@contextlib.contextmanager
def full_terminal() -> Iterator[int]:
    """Give a terminal that nobody reads, full but for some octets: poll(2) still calls it writable."""
    screen, terminal = pty.openpty()
    fill(terminal, 64)
    os.read(screen, 16)
    yield terminal
    for descriptor in (screen, terminal):
        os.close(descriptor)


Stderr = Callable[[], contextlib.AbstractContextManager[int | None]]


@pytest.mark.parametrize("stderr", [closed, full_disk, full_pipe, broken_pipe, full_socket, full_terminal])
@pytest.mark.parametrize("mode", MODES)
def test_whatever_state_stderr_is_in_clients_are_answered(mode: str, stderr: Stderr) -> None:
    """A daemon that cannot log, with a line to log for each client, does everything else; exit status 0."""
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        log = held.enter_context(stderr())
        process = subprocess.Popen(
            [*command_with(listener), "--access-log", "--mode", mode],
            stderr=log,
            pass_fds=[listener.fileno()],
            preexec_fn=(lambda: os.close(2)) if log is None else None,  # noqa: PLW1509 - no threads here
        )
        held.callback(process.wait)
        held.callback(process.kill)
        for number in range(50):
            with connect(listener.getsockname()) as client:
                client.sendall(b"QUIT\r\n")
                assert read_all(client)[:4] in {b"521 ", b"220 "}
            if number % 10 == 0:
                process.send_signal(signal.SIGUSR1)
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_as_process_1_orphans_are_reaped(tmp_path: Path) -> None:
    """A health check that is killed may leave some in a container, where nobody else waits for them."""
    require_root()
    require_tools("unshare", "nsenter")
    unshare = ["unshare", "--pid", "--fork", "--kill-child"]
    command = [*unshare, sys.executable, "-m", "nullsmtpd", "--listen", "127.0.0.1:0"]
    with running(command, tmp_path / "log") as daemon:
        (pid,) = daemon.children()
        inside_it = ["nsenter", f"--target={pid}", "--pid", "sh", "-c"]
        for _ in range(5):  # a child of a process that ends first
            subprocess.run([*inside_it, "sh -c 'sleep 0.05' & echo"], check=True, capture_output=True)
        children = Path(f"/proc/{pid}/task/{pid}/children")
        daemon.wait_for(lambda: not children.read_text(), "that all are gone")
        os.kill(pid, signal.SIGTERM)
        assert daemon.process.wait(PATIENCE) == 0


def faked_clock(file: Path) -> dict[str, str]:
    """Return an environment in which the wall clock is off by what the file says, from one reading to the next."""
    libraries = [*Path("/usr/lib").glob("*/faketime/libfaketime.so.1")]
    require(libraries, "libfaketime")
    return {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # no one can set that one
    }


@pytest.mark.parametrize("jump", ["-400d", "+400d"])
def test_a_clock_that_jumps_changes_the_stamps_and_no_timer(start: Start, tmp_path: Path, jump: str) -> None:
    """Set forward, nobody is closed early; set back, nobody is kept for a year: timers do not read the wall clock."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    environment = faked_clock(clock)
    slow = start("--mode", "mail", "--hostname", "mx.example.org", env=environment)
    quick = start("--mode", "mail", "--hostname", "mx.example.org", "--timeout", "2", env=environment)
    lingering = start("--linger", "2", "--access-log", env=environment)
    addresses = slow.address, quick.address, lingering.address
    with connect(addresses[0]) as talking, connect(addresses[1]) as silent, connect(addresses[2]) as idle:
        for client in (talking, silent, idle):
            client.recv(99)
        assert lingering.stats()["lingering"] == "1"
        clock.write_text(jump)
        stamps = [time.strptime(line.split("T")[0], "%Y-%m-%d") for line in (stats_line(lingering), now())]
        assert abs(time.mktime(stamps[0]) - time.mktime(stamps[1])) > 399 * 86400
        talking.sendall(b"EHLO x\r\n")
        assert talking.recv(99).startswith(b"250-mx.example.org\r\n")
        assert silent.recv(99).startswith(b"421 ")
        lingering.wait_for(lambda: lingering.stats()["lingering"] == "0", "the linger time's end")
        for address in addresses:
            with connect(address) as client:
                assert client.recv(4) in {b"521 ", b"220 "}
    assert [one.stop() for one in (slow, quick, lingering)] == [0, 0, 0]


def stats_line(daemon: Daemon) -> str:
    daemon.stats()
    return daemon.lines("stats")[-1]


def now() -> str:
    return time.strftime("%Y-%m-%dT", time.gmtime())


@pytest.mark.parametrize("error", ["EAFNOSUPPORT", "EPROTONOSUPPORT"])
def test_a_host_whose_kernel_has_no_ipv6_is_answered_on_ipv4(start: Start, tmp_path: Path, error: str) -> None:
    """:PORT is no mistake there (ipv6.disable=1 on the kernel's command line): the second socket() fails."""
    require_tools("strace")
    trace = tmp_path / "trace"
    daemon = start(listen=":0", prefix=injecting(trace, f"socket:error={error}:when=2"))
    assert re.search(r"AF_INET6.*\(INJECTED\)", trace.read_text())
    assert [host for host, _ in daemon.addresses()] == ["0.0.0.0"]  # noqa: S104 - what :PORT means
    with connect(("127.0.0.1", daemon.address[1])) as client:
        assert read_all(client) == LINE


def test_an_address_of_a_family_that_the_kernel_lacks_has_a_remedy(tmp_path: Path) -> None:
    """One line that says what would be valid; exit status 1."""
    command = [sys.executable, "-m", "nullsmtpd", "--listen", "[::1]:0"]
    prefix = injecting(tmp_path / "trace", "socket:error=EAFNOSUPPORT")
    run = subprocess.run([*prefix, *command], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert run.returncode == 1
    assert run.stderr == (
        "nullsmtpd: --listen [::1]:0: Address family not supported by protocol; "
        "this host does not have that address family; give an address of another, or :PORT\n"
    )


NO_IPV6 = "echo 1 | tee /proc/sys/net/ipv6/conf/*/disable_ipv6 >/dev/null"


def test_ipv6_switched_off_leaves_ipv4(start: Start) -> None:
    """With disable_ipv6=1 :PORT and a name of both families serve IPv4; an IPv6 address is refused in one line."""
    prefix = network(NO_IPV6)
    for listen in (":0", "localhost:0"):
        daemon = start(listen=listen, prefix=prefix)
        with inside(daemon), connect(("127.0.0.1", daemon.address[1])) as client:
            assert read_all(client) == LINE
    command = [*prefix, sys.executable, "-m", "nullsmtpd", "--listen", "[::1]:0"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert refused.returncode == 1
    assert refused.stderr.count("nullsmtpd: ") == 1
    assert "nullsmtpd: --listen [::1]:0: " in refused.stderr
    assert "give one of its own" in refused.stderr


def in_a_chroot(change: str) -> list[str]:
    """Return a command before which nullsmtpd finds directories as they may be in a chroot(2)."""
    require_root()
    require_tools("unshare")
    return ["unshare", "--mount", "sh", "-c", f'{change} && exec "$@"', "sh"]


def test_without_proc_it_serves_its_own_metrics(start: Start) -> None:
    """In a chroot(2) without /proc, those of the process are left out."""
    with connect(metrics_address(start(*WITH_METRICS, prefix=in_a_chroot("umount -l /proc")))) as reader:
        reader.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        response = read_all(reader)
    assert b"\nnullsmtpd_connections_total 0\n" in response
    assert b"process_" not in response


def test_without_dev_null_for_a_closed_descriptor_it_does_not_start() -> None:
    """In a chroot(2) without /dev: one line, and exit status 1."""
    command = [*in_a_chroot("mount -t tmpfs none /dev && exec <&-"), sys.executable, "-m", "nullsmtpd"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (ended.returncode, ended.stderr) == (
        1,
        "nullsmtpd: cannot run: /dev/null: No such file or directory\n",
    )


def test_a_service_manager_that_goes_away_does_no_harm(start: Start, tmp_path: Path) -> None:
    """Its socket exists at the start, and later does not: clients are answered all the same."""
    path = str(tmp_path / "notify")
    with service_manager(path) as manager:
        daemon = start(env={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "20000"})
        assert manager.recv(4096).startswith(b"READY=1")
        assert manager.recv(4096) == b"WATCHDOG=1"
    before = daemon.sleeps()
    daemon.wait_for(lambda: daemon.sleeps() > before + 5, "some more turns of the watchdog")
    with connect(daemon.address) as client:
        assert read_all(client) == LINE
    assert daemon.stop() == 0


@pytest.mark.parametrize("behaviour", ["sends_ehlo_first", "writes_twice"])
def test_being_stopped_under_load_costs_nobody_the_line(start: Start, behaviour: str) -> None:
    """SIGSTOP for a second, longer than the linger time, and on again, twice, while clients come: all are answered."""
    daemon = start("--linger", "0.5")
    many = 4000
    crowd = [*CLIENTS, *map(str, (*daemon.address, behaviour, many, 100, PATIENCE))]
    with subprocess.Popen(crowd, stdout=subprocess.PIPE) as clients:
        for enough in (100, 1000):
            daemon.wait_for(lambda wanted=enough: int(daemon.stats()["connections"]) > wanted, "load")  # type: ignore[misc]
            with stopped(daemon):
                time.sleep(1)  # the fault itself
        outcomes, _ = clients.communicate(timeout=PATIENCE)
    assert outcomes == b'{"whole line": %d}\n' % many
    levels = ("lingering", "draining", "talking")
    daemon.wait_for(lambda: all(daemon.stats()[level] == "0" for level in levels), "no client")


def test_a_client_that_spoke_during_a_stop_still_reads_the_line(start: Start) -> None:
    """Its linger time is over when the process continues, and its input is unread: it is drained, not reset."""
    daemon = start("--linger", "0.5")
    with connect(daemon.address) as client:
        daemon.wait_for(lambda: daemon.stats()["lingering"] == "1", "the answer")
        with stopped(daemon):
            client.sendall(b"EHLO x\r\n")
            time.sleep(1)  # the fault itself
        daemon.wait_for(lambda: daemon.stats()["drained"] == "1", "the end of its time")
        client.sendall(b"MAIL FROM:<>\r\n")
        client.sendall(b"QUIT\r\n")
        assert read_all(client) == LINE


def test_commands_that_came_during_a_stop_are_answered(start: Start) -> None:
    """A stop that outlasts --timeout is not the clients' silence, however many there are."""
    daemon = start("--mode", "mail", "--hostname", "mx.example.org", "--timeout", "2")
    with contextlib.ExitStack() as held:
        clients = [held.enter_context(connect(daemon.address)) for _ in range(300)]
        for client in clients:
            assert client.recv(99) == b"220 mx.example.org ESMTP\r\n"
        status = Path(f"/proc/{daemon.pid}/status")
        daemon.wait_for(
            lambda: "S (sleeping)" in status.read_text(), "its waiting for events, which the stop interrupts"
        )
        with stopped(daemon):
            for client in clients:
                client.sendall(b"NOOP\r\n")
            time.sleep(2.5)  # the fault itself
        assert {client.recv(99) for client in clients} == {b"250 2.0.0 OK\r\n"}
