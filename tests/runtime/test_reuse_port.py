"""--reuse-port: several instances of one user on one port, SO_REUSEPORT in socket(7)."""

import collections
import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import pytest
from support import LINE, PATIENCE, Daemon, Start, call_as, connect, read_all, require, require_root, run_cli


@pytest.fixture(autouse=True)
def linux() -> None:
    require(sys.platform == "linux", "Linux's SO_REUSEPORT, which spreads connections")


def start_beside(start: Start, other: Daemon, *arguments: str) -> Daemon:
    """Start an instance on the port of another."""
    return start("--reuse-port", *arguments, listen=f"127.0.0.1:{other.address[1]}")


def connections(daemon: Daemon) -> int:
    return int(daemon.stats()["connections"])


class Load:
    """Clients of a port that connect again and again; ``outcomes`` counts what they see."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.outcomes: collections.Counter[bytes | str] = collections.Counter()
        self.is_over = threading.Event()
        self._address = address

    def run(self) -> None:
        while not self.is_over.is_set():
            try:
                with connect(self._address) as client:
                    outcome: bytes | str = read_all(client)
            except OSError as error:
                outcome = type(error).__name__
            self.outcomes[outcome] += 1


@contextlib.contextmanager
def load(daemon: Daemon) -> Iterator[Load]:
    """Have clients connect to the daemon's port until the end of the block."""
    running = Load(daemon.address)
    threads = [threading.Thread(target=running.run) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        yield running
    finally:
        running.is_over.set()
        for thread in threads:
            thread.join(PATIENCE)


def test_two_instances_share_the_connections_of_a_port(start: Start) -> None:
    """The kernel spreads them; each is answered once."""
    first = start("--reuse-port")
    second = start_beside(start, first)
    for _ in range(200):
        with connect(first.address) as client:
            assert read_all(client) == LINE
    first.wait_for(lambda: connections(first) + connections(second) == 200, "all of them")
    assert min(connections(first), connections(second)) > 50


def test_one_is_killed_under_load_and_restarted_and_the_other_goes_on(start: Start) -> None:
    """Dialogues of the other notice nothing, and from its end on every new client is answered.

    Only clients in the accept queue of the killed one are reset: that is all that SIGKILL costs.
    """
    first = start("--reuse-port", "--mode", "session", "--max-sessions", "1")
    with connect(first.address) as held:  # takes the only session, so that everybody else gets line and FIN
        assert held.recv(99) == LINE
        second = start_beside(start, first)
        with load(first) as clients:
            second.wait_for(lambda: connections(second) > 100, "load")
            before = connections(first)
            second.process.kill()
            second.process.wait()
            reset = sum(clients.outcomes.values()) - clients.outcomes[LINE]
            first.wait_for(lambda: connections(first) > before + 100, "the clients of both")
            third = start_beside(start, first)
            third.wait_for(lambda: connections(third) > 100, "its share after the restart")
            held.sendall(b"NOOP\r\n")
            assert held.recv(99) == LINE
        failed = sum(clients.outcomes.values()) - clients.outcomes[LINE]
        assert failed <= reset + 8  # those that were connecting at that moment, one a thread
        held.sendall(b"QUIT\r\n")
        assert read_all(held).startswith(b"221 ")


def test_a_graceful_shutdown_of_one_loses_no_client(start: Start) -> None:
    """Not those in its accept queue, and not those that connect meanwhile."""
    first = start("--reuse-port")
    with load(first) as clients:
        for _ in range(5):
            second = start_beside(start, first)
            second.wait_for(lambda one=second: connections(one) > 20, "load")  # type: ignore[misc]
            assert second.stop() == 0
    assert set(clients.outcomes) == {LINE}


@pytest.mark.parametrize("flags", [((), ()), (("--reuse-port",), ()), ((), ("--reuse-port",))])
def test_without_the_flag_on_both_the_port_is_taken(
    start: Start, flags: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    """Nobody shares a port by mistake."""
    first = start(*flags[0])
    result = run_cli("--listen", f"127.0.0.1:{first.address[1]}", *flags[1])
    assert result.returncode == 1
    assert f"--listen 127.0.0.1:{first.address[1]}: Address already in use; " in result.stderr
    assert result.stderr.count("\n") == 1


def test_another_user_cannot_share_the_port(start: Start) -> None:
    """socket(7): all sockets must have the same effective user, or a local user could take over connections."""
    require_root()
    address = start("--reuse-port").address

    def bind() -> None:
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            other.bind(address)

    assert call_as(0, bind) == "None"
    assert "Address already in use" in call_as(64_321, bind)


def test_instances_share_a_port_of_both_families(start: Start) -> None:
    """:PORT is bound for IPv4 and IPv6 by each."""
    first = start("--reuse-port", listen=":0", count=2)
    port = first.address[1]
    second = start("--reuse-port", listen=f":{port}", count=2)
    for host in ("127.0.0.1", "::1"):
        for _ in range(50):
            with connect((host, port)) as client:
                assert read_all(client) == LINE
    first.wait_for(lambda: connections(first) + connections(second) == 100, "all of them")
    assert min(connections(first), connections(second)) > 10
    assert [first.stop(signal.SIGINT), second.stop()] == [0, 0]
