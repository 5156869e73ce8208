"""Under a service manager: sockets passed in, and what it is told. The manager is the test itself."""

import contextlib
import os
import resource
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from activation import command_with, daemon_on
from hypothesis import given
from hypothesis import strategies as st
from support import LINE, PATIENCE, Start, connect, read_all, require

from nullsmtpd.runtime.sockets import ListenError
from nullsmtpd.runtime.systemd import Notifier, inherited_listeners


def test_sockets_of_both_families_replace_listen(tmp_path: Path) -> None:
    """Two sockets passed in are answered on, and the address given by --listen is not bound."""
    with socket.create_server(("127.0.0.1", 0)) as v4, socket.create_server(("::1", 0), family=socket.AF_INET6) as v6:
        passed = [one.getsockname()[:2] for one in (v4, v6)]
        with daemon_on(tmp_path, v4, v6, arguments=("--listen", "192.0.2.1:25")) as daemon:
            assert daemon.addresses() == passed
            for address in passed:
                with connect(address) as client:
                    assert read_all(client) == LINE
            assert daemon.stop() == 0


@pytest.mark.parametrize("mode", ["close", "mail"])
def test_twenty_restarts_under_load_lose_no_connection(tmp_path: Path, mode: str) -> None:
    """The manager keeps the socket: who comes between two of us waits for the next, and is not reset."""
    outcomes: list[bytes | str] = []
    done = threading.Event()
    arguments = ("--mode", mode)

    def clients(address: tuple[str, int]) -> None:
        while not done.is_set():
            try:
                with connect(address) as client:
                    client.sendall(b"QUIT\r\n")
                    outcomes.append(read_all(client)[:3])
            except OSError as error:
                outcomes.append(type(error).__name__)

    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        crowd = [threading.Thread(target=clients, args=(listener.getsockname(),)) for _ in range(8)]
        try:
            for thread in crowd:
                thread.start()
            for _ in range(20):
                with daemon_on(tmp_path, listener, arguments=arguments) as daemon:
                    enough = len(outcomes) + 50
                    daemon.wait_for(lambda wanted=enough: len(outcomes) > wanted, "load")  # type: ignore[misc]
                    assert daemon.stop() == 0
            with daemon_on(tmp_path, listener, arguments=arguments):
                done.set()
                for thread in crowd:
                    thread.join(PATIENCE)
        finally:
            done.set()
    # In mode mail a session that is open when we end is told so (421), and that is an answer.
    assert set(outcomes) <= ({b"521"} if mode == "close" else {b"220", b"521"})
    assert len(outcomes) > 1000


def test_sockets_meant_for_another_process_are_left_alone(start: Start) -> None:
    """LISTEN_PID names somebody else: --listen holds."""
    daemon = start(env={"LISTEN_PID": "1", "LISTEN_FDS": "1"})
    with connect(daemon.address) as client:
        assert read_all(client) == LINE


def not_listening() -> socket.socket:
    return socket.socket()


def datagrams() -> socket.socket:
    return socket.socket(type=socket.SOCK_DGRAM)


def local() -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    one.bind("")  # unix(7): autobind, a free name in the abstract namespace
    one.listen()
    return one


@pytest.mark.parametrize("make", [not_listening, datagrams, local])
def test_what_is_no_listening_tcp_socket_is_refused_in_one_line(make: object) -> None:
    """The message names the descriptor and what would be right; exit status 1."""
    with make() as wrong:  # type: ignore[operator]
        result = subprocess.run(
            command_with(wrong),
            capture_output=True,
            text=True,
            check=False,
            pass_fds=[wrong.fileno()],
            timeout=PATIENCE,
        )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "nullsmtpd: LISTEN_FDS: descriptor 3: not a listening TCP socket; " in result.stderr


def test_a_descriptor_that_is_none_is_refused() -> None:
    """LISTEN_FDS that promises more than was passed names the descriptor that is missing."""
    with pytest.raises(ListenError, match="'99999999999999999999' is not a number"):
        inherited_listeners({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "9" * 5000}, cork=True)
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x1"}
    with pytest.raises(ListenError, match="'x1' is not a number"):
        inherited_listeners(environment, cork=True)
    assert environment == {}


@given(st.dictionaries(st.sampled_from(["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "OTHER"]), st.text()))
def test_the_variables_are_unset_whatever_they_hold(environment: dict[str, str]) -> None:
    """Invariant: nothing is inherited without our own LISTEN_PID, and no child sees the variables again."""
    kept = {"OTHER": environment["OTHER"]} if "OTHER" in environment else {}
    if environment.get("LISTEN_PID") != str(os.getpid()):
        assert inherited_listeners(environment, cork=True) == []
        assert environment == kept


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_hears_ready_status_and_stopping(start: Start, tmp_path: Path, *, abstract: bool) -> None:
    """READY=1 once connections succeed, STOPPING=1 when told to end; by path and in the abstract namespace."""
    require(sys.platform == "linux", "Linux's abstract sockets")
    name = f"@nullsmtpd-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(PATIENCE)
        daemon = start(env={"NOTIFY_SOCKET": name})
        assert manager.recv(4096) == b"READY=1\nSTATUS=Answering on 1 sockets"
        with connect(daemon.address) as client:
            assert read_all(client) == LINE
        assert daemon.stop() == 0
        assert manager.recv(4096).startswith(b"STOPPING=1\n")


def test_the_watchdog_is_fed_when_asked_for(start: Start, tmp_path: Path) -> None:
    """WATCHDOG=1 comes again and again, and without WATCHDOG_USEC never."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(PATIENCE)
        start(env={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "100000"})
        assert manager.recv(4096).startswith(b"READY=1")
        assert [manager.recv(4096) for _ in range(5)] == [b"WATCHDOG=1"] * 5


def test_the_watchdog_is_fed_without_a_descriptor_to_spare(start: Start, tmp_path: Path) -> None:
    """A daemon that is out of descriptors holds its clients until there are some; the manager is not to kill it."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(PATIENCE)
        daemon = start(env={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "100000"})
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (3, 3))
        manager.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while manager.recv(4096):
                pass
        manager.settimeout(PATIENCE)
        assert [manager.recv(4096) for _ in range(5)] == [b"WATCHDOG=1"] * 5


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "2000000"}, 1.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}, 1.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "0"}, 0),
        ({"WATCHDOG_USEC": "soon"}, 0),
        ({"WATCHDOG_USEC": "18446744073709551615"}, 0),  # never
        ({"WATCHDOG_USEC": "9" * 5000}, 0),
    ],
)
def test_the_watchdog_interval_is_half_of_what_is_allowed(environment: dict[str, str], seconds: float) -> None:
    """sd_watchdog_enabled(3): microseconds, and only for the process that is meant."""
    assert Notifier(environment).watchdog_interval == seconds
    assert environment == {}


def test_a_manager_that_is_gone_does_no_harm(start: Start) -> None:
    """NOTIFY_SOCKET that leads nowhere changes nothing."""
    daemon = start(env={"NOTIFY_SOCKET": "/nowhere/notify", "WATCHDOG_USEC": "100000"})
    with connect(daemon.address) as client:
        assert read_all(client) == LINE
    assert daemon.stop() == 0
