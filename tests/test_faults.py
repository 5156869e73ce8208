"""What goes wrong around the responder: descriptors, accept errors, clients that vanish. Every client gets its line."""

import asyncio
import errno
import socket
import struct
import sys
from pathlib import Path

import pytest
import uvloop
from conftest import LINE, PATIENCE, Start, connect, read_all, require
from test_clients import run_clients

from nullsmtpd.counters import Counters
from nullsmtpd.drain import Drains
from nullsmtpd.linger import Lingering
from nullsmtpd.listeners import bind, parse_address
from nullsmtpd.replies import REPLY
from nullsmtpd.responder import Responder
from nullsmtpd.tcp import waiting


@pytest.mark.parametrize("behaviour", ["waits_its_turn", "says_quit_first", "looks_at_so_error"])
def test_with_64_descriptors_hundreds_at_once_all_get_the_line(start: Start, behaviour: str) -> None:
    """Soft and hard limit 64, 400 clients at a time: all are answered, nothing spins, one line says what happened."""
    daemon = start(nofile=64)
    assert run_clients(daemon.address, behaviour, 2000, 400) == {"whole line": 2000}
    assert daemon.stats()["accept_errors"] == "0"
    lowered = [line for line in daemon.log.splitlines() if " listening " not in line and " stats " not in line]
    assert len(lowered) == 1
    assert "max-lingering-lowered wanted=4096" in lowered[0]
    assert "64 files" in lowered[0]
    assert daemon.wake_ups_within(1.0) <= 2  # a timer for a client that has gone may be left, and no more


def test_descriptors_taken_by_something_else_delay_clients_only(start: Start) -> None:
    """When accept fails with EMFILE all the same, the line comes late, not never, and the log says so once."""
    require(sys.platform == "linux", "prlimit")
    daemon = start()
    address = daemon.address
    idle = [connect(address) for _ in range(30)]  # these linger, and are shed to make room
    daemon.wait_for(lambda: daemon.stats()["lingering"] == "30", "30 lingering clients")
    limit_descriptors(daemon.pid, daemon.descriptors())
    try:
        assert run_clients(address, "waits_its_turn", 300, 100) == {"whole line": 300}
    finally:
        for client in idle:
            client.close()
    assert int(daemon.stats()["accept_errors"].removeprefix("EMFILE:")) > 0
    assert len(daemon.lines("accept-paused")) == 1
    assert "error=EMFILE" in daemon.lines("accept-paused")[0]


def limit_descriptors(pid: int, number: int) -> None:
    import resource

    resource.prlimit(pid, resource.RLIMIT_NOFILE, (number, number))


def test_more_lingering_clients_than_allowed_lets_the_oldest_go(start: Start) -> None:
    """Nobody is refused: everyone gets the line, and it is the oldest whose descriptor is closed."""
    daemon = start("--max-lingering", "10", "--linger", "60")
    clients = []
    for number in range(1, 31):
        clients.append(connect(daemon.address))
        daemon.wait_for(lambda n=number: daemon.stats()["connections"] == str(n), "its turn")  # type: ignore[misc]
    stats = daemon.stats()
    assert int(stats["lingering"]) <= 10
    assert int(stats["cut_short"]) == 30 - int(stats["lingering"])
    try:
        for client in clients:
            assert read_all(client) == LINE
        assert draws_reset(clients[0])
        assert not draws_reset(clients[-1])
    finally:
        for client in clients:
            client.close()


def draws_reset(client: socket.socket) -> bool:
    """Tell whether what the client sends now is answered by a reset: its descriptor is gone."""
    try:
        for _ in range(3):
            client.send(b"NOOP\r\n")
    except OSError:
        return True
    return False


def test_clients_that_reset_at_once_do_no_harm(start: Start) -> None:
    """A reset before the answer is counted at most; the next client is served."""
    daemon = start()
    for _ in range(500):
        client = connect(daemon.address)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    with connect(daemon.address) as client:
        assert read_all(client) == LINE
    daemon.wait_for(lambda: daemon.stats()["connections"] == "501", "all 501")
    daemon.wait_for(lambda: daemon.stats()["lingering"] == "0", "no one lingering")
    assert daemon.lines("internal-error") == []


def test_resets_in_the_backlog_are_shrugged_at(start: Start) -> None:
    """Connections reset while they wait to be accepted fail to be answered, and nothing else happens."""
    import signal

    daemon = start()
    daemon.process.send_signal(signal.SIGSTOP)
    for _ in range(100):
        client = connect(daemon.address)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    daemon.process.send_signal(signal.SIGCONT)
    with connect(daemon.address) as client:
        assert read_all(client) == LINE
    assert daemon.stats()["send_errors"] == "100"
    assert daemon.lines("internal-error") == []


class FaultyListener(socket.socket):
    """A listening socket whose accept fails as often as it is told to."""

    faults: list[int]
    calls = 0

    def _accept(self) -> tuple[int, object]:
        self.calls += 1
        if self.faults:
            raise OSError(self.faults.pop(0), "injected")
        accepted: tuple[int, object] = super()._accept()  # type: ignore[misc]
        return accepted


CONNECTION_ERRORS = [errno.ECONNABORTED, errno.EPROTO, errno.EINTR, errno.EPERM, errno.ENETDOWN]
CAPACITY_ERRORS = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]


@pytest.mark.parametrize("number", CONNECTION_ERRORS + CAPACITY_ERRORS, ids=lambda number: errno.errorcode[number])
def test_no_accept_error_costs_a_client_its_line(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Whichever error accept meets three times, all clients are answered, it is counted, and no loop is busy."""

    def client(address: tuple[str, int]) -> bytes:
        with connect(address) as connection:
            return read_all(connection)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        listener = FaultyListener(fileno=bind(parse_address("127.0.0.1:0"), 100)[0].detach())
        listener.setblocking(False)
        listener.faults = [number] * 3
        counters = Counters()
        lingering = Lingering(loop, counters, Drains(loop, counters, 1), seconds=2, limit=100)
        responder = Responder(loop, [listener], REPLY, counters, lingering)
        responder.start()
        address = listener.getsockname()
        answers = await asyncio.gather(*(asyncio.to_thread(client, address) for _ in range(20)))
        assert answers == [LINE] * 20
        assert counters.accept_errors == {number: 3}
        assert listener.calls <= 20 + 3 + 5
        await responder.stop()
        assert listener.fileno() == -1
        lingering.close_all()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
    assert capfd.readouterr().err.count("accept-paused") == (number in CAPACITY_ERRORS)


def test_an_accept_error_while_ending_does_not_keep_the_listener_open() -> None:
    """Even when descriptors run out in the last round, the listener is closed and no timer is left."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        listener = FaultyListener(fileno=bind(parse_address("127.0.0.1:0"), 100)[0].detach())
        listener.faults = [errno.EMFILE]
        counters = Counters()
        lingering = Lingering(loop, counters, Drains(loop, counters, 1), seconds=2, limit=100)
        responder = Responder(loop, [listener], REPLY, counters, lingering)
        responder.start()
        with socket.create_connection(listener.getsockname(), timeout=PATIENCE) as client:
            await responder.stop()
            assert listener.fileno() == -1
            assert responder._timer is None
            assert await asyncio.to_thread(read_all, client) == LINE
        lingering.close_all()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


def test_the_kernel_tells_how_many_wait() -> None:
    """tcpi_unacked of a listening socket is its accept queue; elsewhere the caller's guess is returned."""
    with bind(parse_address("127.0.0.1:0"), 100)[0] as listener:
        if sys.platform != "linux":
            assert waiting(listener, 7) == 7
            return
        assert waiting(listener, 7) == 0
        clients = [socket.create_connection(listener.getsockname()) for _ in range(5)]
        assert waiting(listener, 7) == 5
        for client in clients:
            client.close()


def test_a_mistake_of_ours_is_one_line_and_not_the_end(capfd: pytest.CaptureFixture[str]) -> None:
    """An exception in a callback is logged without a traceback, and the loop goes on."""
    from nullsmtpd.server import _on_internal_error

    loop = uvloop.new_event_loop()
    loop.set_exception_handler(_on_internal_error)
    loop.call_soon(lambda: 1 // 0)
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    loop.close()
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "internal-error" in error
    assert "ZeroDivisionError" in error


def test_nothing_a_client_sends_is_ever_shown(start: Start, tmp_path: Path) -> None:
    """What clients say is neither logged nor echoed (RFC 7504 §7)."""
    daemon = start()
    secret = b"XYZZY-SECRET\r\n"
    for hostile in (secret, secret + b"\x00\xff\x1b[2J", b"521 " + secret):
        with connect(daemon.address) as client:
            client.sendall(hostile)
            assert read_all(client) == LINE
    daemon.stop()
    assert "XYZZY" not in daemon.log
