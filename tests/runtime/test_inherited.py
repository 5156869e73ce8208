"""What a process inherits: descriptors, their limit, and listening sockets on which another program has set options."""

import contextlib
import os
import re
import resource
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from activation import command_with, daemon_on
from faults import stopped
from support import LINE, MODES, PATIENCE, Daemon, Start, connect, read_all, require, run_cli, running

NULLSMTPD = [sys.executable, "-m", "nullsmtpd"]


@pytest.fixture(autouse=True)
def linux() -> None:
    require(sys.platform == "linux", "Linux's socket options and /proc")


# --- descriptors


def limit_to(files: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


LIMITS = [("close", files) for files in range(5, 40)] + [
    (mode, files) for mode in ("session", "mail") for files in (*range(12, 40, 3), 64)
]


@pytest.mark.parametrize(("mode", "files"), LIMITS)
def test_with_few_open_files_it_serves_or_refuses_to_start(tmp_path: Path, mode: str, files: int) -> None:
    """One line and exit status 1, or every client of a crowd is answered; nothing in between.

    With fewer than five files the interpreter itself cannot start.
    """
    log_path = tmp_path / "log"
    options = ("--mode", mode, "--access-log", "--metrics", "127.0.0.1:0", "--linger", "0.5")
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*NULLSMTPD, "--listen", "127.0.0.1:0", *options],
            stderr=log,
            preexec_fn=limit_to(files),  # noqa: PLW1509 - no threads here
        )
    daemon = Daemon(process, log_path)
    try:
        daemon.wait_for(lambda: daemon.addresses() or process.poll() is not None, "a decision")
        if process.poll() is None:
            serves(daemon)
        else:
            refused(daemon, files)
    finally:
        process.kill()
        process.wait()


def serves(daemon: Daemon) -> None:
    with contextlib.ExitStack() as held:
        clients = [held.enter_context(connect(daemon.address)) for _ in range(30)]
        for client in clients:
            client.sendall(b"QUIT\r\n")
        for client in clients:
            assert read_all(client)[:4] in {b"521 ", b"220 "}
            client.close()
    assert "internal-error" not in daemon.log
    assert daemon.stop() == 0


def refused(daemon: Daemon, files: int) -> None:
    assert daemon.process.returncode == 1
    too_low = rf"cannot run: the limit of open files is {files}; at least \d+ are needed"
    assert re.fullmatch(rf"nullsmtpd: ({too_low}|--metrics \S+: Too many open files); raise .*\n", daemon.log)


@pytest.mark.parametrize("mode", MODES)
def test_sixty_four_open_files_are_enough_for_every_mode(start: Start, mode: str) -> None:
    """With the access log and metrics."""
    daemon = start("--mode", mode, "--access-log", "--metrics", "127.0.0.1:0", nofile=64)
    with connect(daemon.address) as client:
        assert client.recv(4) in {b"521 ", b"220 "}


def test_the_soft_limit_is_raised_to_the_hard_one(start: Start) -> None:
    """A service manager's soft limit of 1,024 is not the number of clients that can linger."""
    daemon = start(prefix=("prlimit", "--nofile=256:2000"))
    limits = re.search(r"^Max open files\s+(\d+)\s+(\d+)", Path(f"/proc/{daemon.pid}/limits").read_text(), re.MULTILINE)
    assert limits
    assert limits.groups() == ("2000", "2000")
    assert "2000 files" in daemon.lines("max-lingering-lowered")[0]


@pytest.mark.parametrize("mode", MODES)
def test_more_inherited_descriptors_than_select_can_take(tmp_path: Path, mode: str) -> None:
    """The event loop's own are beyond 1,023 then."""
    require(resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 4096, "a limit of 4,096 open files")
    with contextlib.ExitStack() as held:
        descriptors = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
        for descriptor in descriptors:
            held.callback(os.close, descriptor)
        command = [*NULLSMTPD, "--listen", "127.0.0.1:0", "--mode", mode]
        daemon = held.enter_context(running(command, tmp_path / "log", pass_fds=descriptors))
        with connect(daemon.address) as client:
            client.sendall(b"QUIT\r\n")
            assert read_all(client)[:4] in {b"521 ", b"220 "}
        assert daemon.stop() == 0


def test_more_inherited_sockets_than_select_can_take(tmp_path: Path) -> None:
    """1,100 addresses, each of which is answered."""
    require(resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 4096, "a limit of 4,096 open files")
    with contextlib.ExitStack() as held:
        listeners = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(1100)]
        with daemon_on(tmp_path, *listeners) as daemon:
            for listener in (listeners[0], listeners[-1]):
                with connect(listener.getsockname()) as client:
                    assert read_all(client) == LINE
            assert daemon.stop() == 0


# --- options of inherited sockets


IPPROTO_MPTCP = 262  # include/uapi/linux/in.h

Options = Sequence[tuple[int, int, int | bytes]]
SECONDS = struct.pack("ll", 0, 1000)  # struct timeval: a millisecond
OPTIONS: dict[str, Options] = {
    "nothing": [],
    "cork": [(socket.IPPROTO_TCP, socket.TCP_CORK, 1)],
    "nodelay": [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
    "defer accept": [(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)],
    "linger": [(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))],
    "linger for a while": [(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 5))],
    "low-water mark": [(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1000)],
    "timeouts": [(socket.SOL_SOCKET, option, SECONDS) for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO)],
    "small buffers": [(socket.SOL_SOCKET, option, 1) for option in (socket.SO_RCVBUF, socket.SO_SNDBUF)],
    "keepalive": [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)],
    "urgent data in line": [(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)],
    "user timeout": [(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1)],
    "no FIN_WAIT2": [(socket.IPPROTO_TCP, socket.TCP_LINGER2, -1)],
    "small segments": [(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 88)],
    "small window": [(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, 1)],
    "unsent low-water mark": [(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 1)],
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_options_left_on_a_socket_change_nothing_for_clients(tmp_path: Path, mode: str, options: Options) -> None:
    """A silent client, a whole dialogue and an early talker are served, and no connection ends with a reset."""
    arguments = ("--mode", mode, "--hostname", "mx.example.org", "--linger", "1")
    with listener_with(options) as listener, daemon_on(tmp_path, listener, arguments=arguments) as daemon:
        with connect(listener.getsockname()) as client:
            assert client.recv(99) in {LINE, b"220 mx.example.org ESMTP\r\n"}
            if mode != "close":
                client.sendall(b"NOOP\r\n")
                assert client.recv(99) in {LINE, b"250 2.0.0 OK\r\n"}
                client.sendall(b"QUIT\r\n")
                assert client.recv(99).endswith(b" mx.example.org closing connection\r\n")
            assert client.recv(1) == b""
            client.sendall(b"NOOP\r\n")
            daemon.stats()
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        with stopped(daemon):
            early = connect(listener.getsockname())
            early.sendall(b"NOOP\r\nQUIT\r\n")
        with early:
            assert read_all(early).startswith(b"220 " if mode == "mail" else LINE)
        daemon.wait_until_idle()
        assert daemon.stop() == 0


def listener_with(options: Options) -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    for level, option, value in options:
        listener.setsockopt(level, option, value)
    return listener


def test_options_that_delay_or_reset_are_reset_on_the_socket_itself(tmp_path: Path) -> None:
    """For every accepted connection at once, before the first one."""
    left = OPTIONS["defer accept"], OPTIONS["linger"], OPTIONS["low-water mark"]
    with listener_with([option for options in left for option in options]) as listener, daemon_on(tmp_path, listener):
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) == 0
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER) == 0
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1


def test_an_inherited_socket_is_not_corked(tmp_path: Path) -> None:
    """Another program may have left it so; a corked dialogue is 200 ms late with every reply, tcp(7)."""
    with listener_with(OPTIONS["cork"]) as listener, daemon_on(tmp_path, listener, arguments=("--mode", "mail")):
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK) == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_multipath_listener_is_answered(tmp_path: Path, mode: str) -> None:
    """Sockets of systemd may be MPTCP's (RFC 8684)."""
    try:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
    except OSError:
        require(condition=False, what="MPTCP in the kernel")
    with listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with daemon_on(tmp_path, listener, arguments=("--mode", mode)) as daemon:
            for protocol in (0, IPPROTO_MPTCP):
                with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as client:
                    client.settimeout(PATIENCE)
                    client.connect(listener.getsockname())
                    client.sendall(b"QUIT\r\n")
                    assert read_all(client)[:4] in {b"521 ", b"220 "}
            assert daemon.stop() == 0


def test_a_listener_that_another_holder_shuts_down_ends_the_process(tmp_path: Path) -> None:
    """It would look healthy and serve nobody: exit status 1 with one line, after the clients of the others."""
    with socket.create_server(("127.0.0.1", 0)) as lost, socket.create_server(("127.0.0.1", 0)) as other:
        host, port = lost.getsockname()
        with daemon_on(tmp_path, lost, other) as daemon, contextlib.ExitStack() as held:
            with stopped(daemon):
                clients = [held.enter_context(connect(other.getsockname())) for _ in range(50)]
                lost.shutdown(socket.SHUT_RDWR)
            assert {read_all(client) for client in clients} == {LINE}
            assert daemon.process.wait(PATIENCE) == 1
            (message,) = [line for line in daemon.log.splitlines() if line.startswith("nullsmtpd: ")]
            assert (
                f"{host}:{port}: the listening socket was shut down; restart the program that passes it in" in message
            )
            assert "Traceback" not in daemon.log


# --- sockets that were passed to another process


def test_sockets_passed_through_a_wrapper_that_forks_are_explained() -> None:
    """LISTEN_PID names the wrapper: the port is taken, by the very socket that was passed, and the log tells why."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = "{}:{}".format(*listener.getsockname())
        env = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
        run = run_cli("--listen", address, env=env)
    ignored, message = run.stderr.splitlines()
    assert run.returncode == 1
    assert re.search(rf" listen-fds-ignored listen_pid={os.getpid()} pid=\d+ .* without a wrapper that forks", ignored)
    assert message.startswith(
        f"nullsmtpd: --listen {address}: Address already in use; start nullsmtpd without the wrapper"
    )


def test_a_shell_that_forks_is_such_a_wrapper() -> None:
    """What `sh -c "nullsmtpd …; true"` in ExecStart= does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = "{}:{}".format(*listener.getsockname())
        handing_over = command_with(listener)[: -len(NULLSMTPD)]
        command = [*handing_over, "sh", "-c", '"$@"; exit $?', "sh", *NULLSMTPD, "--listen", address]
        run = subprocess.run(
            command, pass_fds=[listener.fileno()], capture_output=True, text=True, check=False, timeout=PATIENCE
        )
    assert run.returncode == 1
    assert "start nullsmtpd without a wrapper that forks" in run.stderr.splitlines()[0]


def test_a_wrapper_that_executes_is_none(tmp_path: Path) -> None:
    """exec(2) keeps the process id."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        handing_over = command_with(listener)[: -len(NULLSMTPD)]
        command = [*handing_over, "sh", "-c", 'exec "$@"', "sh", *NULLSMTPD]
        with running(command, tmp_path / "log", pass_fds=[listener.fileno()]) as daemon:
            assert daemon.address == listener.getsockname()
            assert daemon.stop() == 0
