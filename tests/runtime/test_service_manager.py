"""Under a service manager: sockets that it passes, and what it is notified of. The manager is the test itself."""

import contextlib
import os
import resource
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from activation import command_with, daemon_on, outcome_with, service_manager
from fakes import FakeLoop
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
    # In mode mail a session that is open at shutdown ends with 421, which is an answer.
    assert set(outcomes) <= ({b"521"} if mode == "close" else {b"220", b"521"})
    assert len(outcomes) > 1000


def test_sockets_passed_to_another_process_are_ignored(start: Start) -> None:
    """LISTEN_PID is not this process: --listen holds, and the log tells why."""
    daemon = start(env={"LISTEN_PID": "1", "LISTEN_FDS": "1"})
    with connect(daemon.address) as client:
        assert read_all(client) == LINE
    assert "listen_pid=1" in daemon.lines("listen-fds-ignored")[0]
    assert not start().lines("listen-fds-ignored")


def test_a_socket_that_was_passed_is_non_blocking_and_passed_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a client that goes before it is accepted would block the process: the manager's flags do not matter."""
    with socket.create_server(("127.0.0.1", 0)) as passed:
        passed.set_inheritable(True)
        monkeypatch.setattr("nullsmtpd.runtime.systemd._FIRST", passed.detach())
        (listener,) = inherited_listeners({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
        with listener:
            assert not os.get_blocking(listener.fileno())
            assert not os.get_inheritable(listener.fileno())


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
def test_anything_but_a_listening_tcp_socket_is_refused_in_one_line(make: Callable[[], socket.socket]) -> None:
    """The message names the descriptor and what would be right; exit status 1."""
    with make() as wrong:
        result = outcome_with(wrong, command_with(wrong))
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "nullsmtpd: LISTEN_FDS: descriptor 3: not a listening TCP socket; " in result.stderr


def refusal(count: str, *, unix: bool = False) -> str:
    """Return why sockets are not taken; the variables are gone."""
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count, "LISTEN_FDNAMES": "smtp"}
    with pytest.raises(ListenError) as raised:
        inherited_listeners(environment, unix=unix)
    assert raised.value.filename == "LISTEN_FDS"
    assert environment == {}
    return str(raised.value.strerror)


@pytest.mark.parametrize("count", ["", "x1", "-1", "1.5", "٣", "9" * 5000])
def test_a_number_of_sockets_that_is_none_is_refused(count: str) -> None:
    """The message repeats it, shortened."""
    message = refusal(count)
    assert message.endswith(" is not a number of sockets")
    assert len(message) < 100


@pytest.mark.parametrize(("unix", "kinds"), [(False, "TCP sockets"), (True, "TCP or Unix sockets")])
def test_a_descriptor_that_is_not_open_is_refused(monkeypatch: pytest.MonkeyPatch, kinds: str, *, unix: bool) -> None:
    """LISTEN_FDS that promises more than was passed: the message names the descriptor, and what is valid."""
    monkeypatch.setattr("nullsmtpd.runtime.systemd._FIRST", 1_000_000)
    message = refusal("1", unix=unix)
    assert message.startswith("descriptor 1000000: Bad file descriptor; ")
    assert f"pass listening {kinds}" in message


@given(st.dictionaries(st.sampled_from(["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "OTHER"]), st.text()))
def test_the_variables_are_removed_whatever_they_hold(environment: dict[str, str]) -> None:
    """Invariant: nothing is inherited without our own LISTEN_PID, and no child process gets the variables."""
    kept = {"OTHER": environment["OTHER"]} if "OTHER" in environment else {}
    if environment.get("LISTEN_PID") != str(os.getpid()):
        assert inherited_listeners(environment) == []
        assert environment == kept


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_is_notified_of_start_and_shutdown(start: Start, tmp_path: Path, *, abstract: bool) -> None:
    """READY=1 once connections succeed, STOPPING=1 at SIGTERM; by path and in the abstract namespace."""
    require(sys.platform == "linux", "Linux's abstract sockets")
    name = f"@nullsmtpd-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with service_manager("\0" + name[1:] if abstract else name) as manager:
        daemon = start(env={"NOTIFY_SOCKET": name})
        assert manager.recv(4096) == b"READY=1\nSTATUS=Answering on 1 sockets"
        with connect(daemon.address) as client:
            assert read_all(client) == LINE
        assert daemon.stop() == 0
        assert manager.recv(4096).startswith(b"STOPPING=1\n")


def test_a_manager_that_does_not_read_blocks_nobody(start: Start, tmp_path: Path) -> None:
    """Its queue is full before the first notification."""
    path = str(tmp_path / "notify")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        socket.socket(manager.family, manager.type) as other,
    ):
        manager.bind(path)
        other.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while other.sendto(b"READY=1", path):
                pass
        daemon = start(env={"NOTIFY_SOCKET": path})
        with connect(daemon.address) as client:
            assert read_all(client) == LINE
        assert daemon.stop() == 0


def test_the_watchdog_is_served_while_the_process_runs(start: Start, tmp_path: Path) -> None:
    """WATCHDOG=1 is sent again and again."""
    path = str(tmp_path / "notify")
    with service_manager(path) as manager:
        start(env={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "100000"})
        assert manager.recv(4096).startswith(b"READY=1")
        assert [manager.recv(4096) for _ in range(5)] == [b"WATCHDOG=1"] * 5


def test_the_watchdog_is_served_without_a_free_descriptor(start: Start, tmp_path: Path) -> None:
    """Clients wait for descriptors meanwhile; the manager must not kill the process."""
    path = str(tmp_path / "notify")
    with service_manager(path) as manager:
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
        ({}, None),
        ({"WATCHDOG_USEC": "2000000"}, 1.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}, 1.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "18446744073709551615"}, None),  # never
        ({"WATCHDOG_USEC": "9" * 5000}, None),
    ],
)
def test_the_watchdog_interval_is_half_of_the_timeout(
    tmp_path: Path, environment: dict[str, str], seconds: float | None
) -> None:
    """sd_watchdog_enabled(3): microseconds, and only for the process that is meant; the first message comes at once."""
    require(sys.platform == "linux", "sd_notify(3)")
    loop, path = FakeLoop(), str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.setblocking(False)
        given = environment | {"NOTIFY_SOCKET": path}
        notifier = Notifier(given)
        assert notifier._socket is not None
        with notifier._socket:
            notifier.start_watchdog(loop.as_loop())
            for _ in range(3 if seconds else 0):
                assert manager.recv(4096) == b"WATCHDOG=1"
                assert loop.until_next == seconds
                loop.advance(loop.until_next)
        assert given == {}
        assert bool(loop.timers) == bool(seconds)


def test_a_manager_that_does_not_exist_does_no_harm(start: Start) -> None:
    """NOTIFY_SOCKET that leads nowhere changes nothing."""
    daemon = start(env={"NOTIFY_SOCKET": "/nowhere/notify", "WATCHDOG_USEC": "100000"})
    with connect(daemon.address) as client:
        assert read_all(client) == LINE
    assert daemon.stop() == 0
