"""What goes wrong with connections: system calls that fail, clients that vanish, do not read, or are too many."""

import asyncio
import contextlib
import ctypes
import errno
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, cast

import pytest
import uvloop
from support import LINE, PATIENCE, Daemon, Start, connect, read_all, require, require_root, require_tools
from test_clients import run_clients
from test_linger import Clock

from nullsmtpd.responder.accept import Responder
from nullsmtpd.responder.counters import Counters
from nullsmtpd.responder.drain import Drains
from nullsmtpd.responder.linger import Lingering
from nullsmtpd.responder.replies import REPLY
from nullsmtpd.runtime.sockets import bind, parse_address
from nullsmtpd.runtime.tcp import waiting


@pytest.mark.parametrize("behaviour", ["waits_for_the_line", "sends_quit_first", "polls_so_error"])
def test_with_64_descriptors_hundreds_at_once_all_get_the_line(start: Start, behaviour: str) -> None:
    """Soft and hard limit 64, 400 clients at a time: all are answered, nothing spins, one line says what happened."""
    daemon = start(nofile=64)
    assert run_clients(daemon.address, behaviour, 2000, 400) == {"whole line": 2000}
    assert daemon.stats()["accept_errors"] == "0"
    usual = {"listening", "stats", "running-as-root"}
    (lowered,) = [line for line in daemon.log.splitlines() if line.split()[1] not in usual]
    assert "max-lingering-lowered wanted=4096" in lowered
    assert "64 files" in lowered
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
        assert run_clients(address, "waits_for_the_line", 300, 100) == {"whole line": 300}
    finally:
        for client in idle:
            client.close()
    assert int(daemon.stats()["accept_errors"].removeprefix("EMFILE:")) > 0
    assert len(daemon.lines("accept-paused")) == 1
    assert "error=EMFILE" in daemon.lines("accept-paused")[0]


def limit_descriptors(pid: int, number: int) -> None:
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


def test_resets_in_the_backlog_are_shrugged_at(start: Start) -> None:
    """Connections reset while they wait to be accepted fail to be answered, and nothing else happens."""
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


class Looking:
    """A responder for some listeners, with ``limit`` places to linger ``seconds`` in, on a clock that a test turns."""

    def __init__(self, addresses: int = 1, *, seconds: float = 2, limit: int = 100) -> None:
        self.loop = ShortLoop()
        loop = cast("asyncio.AbstractEventLoop", self.loop)
        self.listeners = [
            FaultyListener(fileno=bind(parse_address("127.0.0.1:0"), 100)[0].detach()) for _ in range(addresses)
        ]
        self.counters = Counters()
        self.lingering = Lingering(loop, self.counters, Drains(loop, self.counters, 1), seconds, limit)
        self.responder = Responder(loop, list(self.listeners), REPLY, self.counters, self.lingering)
        self.clients: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.responder._ask_no_more()
        self.lingering.close_all()
        for one in (*self.clients, *self.listeners):
            one.close()

    def come(self, count: int = 1, address: int = 0) -> socket.socket:
        """Have clients connect; return the last one."""
        for _ in range(count):
            self.clients.append(connect(self.listeners[address].getsockname()))
        return self.clients[-1]

    def wake_up(self) -> None:
        """Find the first listener readable, as an event loop does."""
        self.responder._on_readable(self.responder._ports[0])


def test_a_second_without_descriptors_is_ten_looks(capfd: pytest.CaptureFixture[str]) -> None:
    """By the clock: while accept fails nothing is read, a look comes each tenth of a second, and one line says so."""
    with Looking(seconds=0) as one:
        client = one.come()
        one.responder.start()
        one.listeners[0].faults = [errno.ENFILE] * 10
        one.wake_up()
        assert one.loop.readers == set()
        one.loop.advance(0.45)
        assert one.counters.accept_errors == {errno.ENFILE: 5}
        one.loop.advance(0.5)
        assert one.counters.accept_errors == {errno.ENFILE: 10}
        one.loop.advance(0.1)
        assert read_all(client) == LINE
        one.loop.advance(0.1)
        assert one.loop.readers == set(one.listeners)
        assert one.loop.timers == []
    assert capfd.readouterr().err.count("accept-paused error=ENFILE") == 1


def test_without_descriptors_no_further_address_is_asked() -> None:
    """Accepting pauses for all of them at once, and a single error costs half of those who linger, not all."""
    with Looking(4) as one:
        one.come(8)
        assert one.responder._look(one.responder._ports) == 8
        for address, listener in enumerate(one.listeners):
            one.come(address=address)
            listener.faults = [errno.ENFILE]
        one.responder._look(one.responder._ports)
        assert one.counters.accept_errors == {errno.ENFILE: 1}
        assert len(one.lingering) == 4


def test_looks_come_less_often_when_few_do_and_more_often_when_many_do() -> None:
    """A look that answers less than is worth it makes the next one wait twice as long, up to 4 ms, and back again."""
    paces = []
    with Looking(seconds=0, limit=1000) as one:
        for crowd in (2, 3, 3, 3, 3, 20, 32, 32, 32, 20, 3):
            one.come(crowd)
            if one.responder._timer is None:
                one.wake_up()
            else:
                one.loop.advance(one.loop.until_next)
            paces.append(1000 * one.loop.until_next)
    assert paces == [1, 2, 4, 4, 4, 4, 2, 1, 1, 1, 2]


def test_each_address_has_its_turn_when_there_is_room_for_few() -> None:
    """A crowd at the first address that takes all places as they become free does not shut out the second."""
    with Looking(2, limit=4) as one:
        one.come(40)
        other = one.come(address=1)
        other.setblocking(False)
        one.wake_up()
        one.loop.advance(1)
        assert other.recv(99) == LINE
        assert one.listeners[0].calls < 40


def test_a_mistake_of_ours_while_looking_does_not_make_the_server_deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a look on the clock comes to grief over, the listeners are read again, and the next client is served."""
    with Looking(seconds=0) as one:
        one.come(2)
        one.wake_up()
        assert one.loop.readers == set()
        with monkeypatch.context() as patch:
            patch.setattr(one.lingering, "let_go", lambda: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                one.loop.advance(0.1)
        assert one.loop.readers == set(one.listeners)
        client = one.come()
        one.wake_up()
        assert read_all(client) == LINE


def test_where_the_kernel_watches_no_more_the_clock_does(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """epoll_ctl(2) may lack memory, or room within fs.epoll.max_user_watches: looks go on until it has it again."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "injected")

    with Looking(2, seconds=0) as one:
        one.come(2)
        one.wake_up()
        with monkeypatch.context() as patch:
            patch.setattr(one.loop, "add_reader", fail)
            one.loop.advance(0.3)
            client = one.come(address=1)
            one.loop.advance(0.2)
            assert read_all(client) == LINE
        one.loop.advance(0.2)
        assert one.loop.readers == set(one.listeners)
        assert one.loop.timers == []
    assert capfd.readouterr().err.count("wait-put-off error=ENOSPC") == 1


def test_an_accept_error_while_ending_does_not_keep_the_listener_open() -> None:
    """Even when descriptors run out again and again, who waits is answered, and no timer is left."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        listener = FaultyListener(fileno=bind(parse_address("127.0.0.1:0"), 100)[0].detach())
        listener.faults = [errno.EMFILE] * 5
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


@pytest.mark.parametrize("number", [*CONNECTION_ERRORS, *CAPACITY_ERRORS], ids=lambda number: errno.errorcode[number])
@pytest.mark.parametrize("mode", ["close", "mail"])
def test_no_accept_that_fails_in_the_kernel_costs_a_client_its_line(
    start: Start, tmp_path: Path, mode: str, number: int
) -> None:
    """The same with a real process: its first three accepts fail, everyone is answered, and no loop is busy."""
    require_tools("strace")
    name, trace = errno.errorcode[number], tmp_path / "trace"
    daemon = start("--mode", mode, prefix=injecting(trace, f"accept4:error={name}:when=1..3"))
    clients = [connect(daemon.address) for _ in range(30)]
    for client in clients:
        with client:
            client.sendall(b"QUIT\r\n")
            assert read_all(client)[:4] in {b"521 ", b"220 "}
    stats = daemon.stats()
    assert stats["connections"] == "30"
    # accept(2) that is interrupted is called again by the interpreter itself (PEP 475)
    assert stats["accept_errors"] == ("0" if number == errno.EINTR else f"{name}:3")
    assert len(daemon.lines("accept-paused")) == (number in CAPACITY_ERRORS)
    assert daemon.stop() == 0
    calls = trace.read_text()
    assert calls.count("(INJECTED)") == 3
    assert calls.count("accept4(") <= 30 + 3 + 10


@pytest.mark.parametrize("name", ["EAGAIN", "ENOBUFS", "ENOMEM"])
def test_a_line_that_the_kernel_has_no_buffer_for_comes_later(start: Start, tmp_path: Path, name: str) -> None:
    """Nobody is dropped without a word: the line is tried again until it can be sent, and the log says so once."""
    require_tools("strace")
    trace = tmp_path / "trace"
    daemon = start(prefix=injecting(trace, f"sendto:error={name}:when=1..9"))
    with contextlib.ExitStack() as held:
        clients = [held.enter_context(connect(daemon.address)) for _ in range(5)]
        assert [read_all(client) for client in clients] == [LINE] * 5
    assert daemon.stats()["send_errors"] == "0"
    assert len(daemon.lines("send-put-off")) == 1
    assert daemon.stop() == 0
    assert trace.read_text().count("(INJECTED)") == 9


def visit(address: tuple[str, int], said: bytes) -> bytes:
    """Say this, read what comes, and return it; a client whose connection breaks returns what it had until then."""
    heard = b""
    with contextlib.suppress(ConnectionError), connect(address) as client:
        client.sendall(said)
        while octets := client.recv(4096):
            heard += octets
    return heard


CLOSE = ("--linger", "0.2")
TALK = ("--mode", "mail", "--hostname", "mx.example.org")
BLAST = b"x" * (1 << 18)


@pytest.mark.parametrize("error", ["ECONNRESET", "EPIPE"])
@pytest.mark.parametrize(
    ("arguments", "call", "said"),
    [
        (CLOSE, "sendto", b""),
        (CLOSE, "shutdown", b""),
        ((*CLOSE, "--access-log"), "recvfrom", b"QUIT\r\n"),
        (TALK, "write", b"EHLO x\r\nQUIT\r\n"),
        (TALK, "read", b"EHLO x\r\nQUIT\r\n"),
        (TALK, "shutdown", b"QUIT\r\n"),
        (TALK, "read", b"QUIT\r\n" + BLAST),
    ],
)
def test_a_connection_that_breaks_in_any_call_concerns_one_client_only(  # noqa: PLR0913, PLR0917 - a table's columns
    start: Start, tmp_path: Path, arguments: tuple[str, ...], call: str, said: bytes, error: str
) -> None:
    """Three calls in turn find their connection reset: as many clients may lose something, and nothing is left open."""
    require_tools("strace")
    daemon = start(*arguments)
    visit(daemon.address, b"QUIT\r\n")  # the event loop keeps a descriptor in reserve from its first stream on
    settle(daemon)
    before = daemon.descriptors()
    with failing(daemon, tmp_path / "trace", f"{call}:error={error}:when=1..3"):
        heard = [visit(daemon.address, said) for _ in range(10)]
    settle(daemon)
    assert sum(answer[:4] in {b"521 ", b"220 "} and answer.endswith(b"\r\n") for answer in heard) >= 10 - 3
    assert visit(daemon.address, b"QUIT\r\n")[:4] in {b"521 ", b"220 "}
    settle(daemon)
    daemon.wait_for(lambda: daemon.descriptors() == before, "the descriptors of the start")


@pytest.mark.parametrize("fault", ["reset", "read:error=ECONNRESET:when=1..3", "read:error=EPIPE:when=1..3"])
def test_drained_clients_that_break_leave_nothing_behind(start: Start, tmp_path: Path, fault: str) -> None:
    """Clients that were still sending when their linger was up, and then are gone."""
    daemon = start(*CLOSE)
    visit(daemon.address, b"")
    with contextlib.ExitStack() as held:
        clients = [held.enter_context(connect(daemon.address)) for _ in range(10)]
        for client in clients:
            client.sendall(b"x" * (1 << 14))
        daemon.wait_for(lambda: daemon.stats()["drained"] == "10", "ten drains")
        if fault == "reset":
            for client in clients:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            require_tools("strace")
            held.enter_context(failing(daemon, tmp_path / "trace", fault))
        for client in clients:
            client.sendall(b"x")
            client.close()
    settle(daemon)
    assert visit(daemon.address, b"QUIT\r\n") == LINE


@pytest.mark.parametrize("moment", ["greeted", "half a command", "mid-dialogue", "after QUIT", "after QUIT and more"])
@pytest.mark.parametrize("mode", ["close", "session", "mail"])
def test_clients_that_reset_at_any_moment_leave_nothing_behind(start: Start, mode: str, moment: str) -> None:
    """ECONNRESET and EPIPE as they happen: a real reset while the daemon waits, answers, drains or takes leave."""
    said = {
        "greeted": b"",
        "half a command": b"EHL",
        "mid-dialogue": b"EHLO x\r\n" * 20,
        "after QUIT": b"QUIT\r\n",
        "after QUIT and more": b"QUIT\r\n" + BLAST,
    }[moment]
    daemon = start("--mode", mode, "--linger", "0.2")
    visit(daemon.address, b"QUIT\r\n")
    settle(daemon)
    before = daemon.descriptors()
    for number in range(50):
        with connect(daemon.address) as client:
            assert client.recv(4) in {b"521 ", b"220 "}
            with contextlib.suppress(ConnectionError):
                client.sendall(said)
                if number % 2:  # with what the daemon says unread
                    client.recv(1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    settle(daemon)
    assert visit(daemon.address, b"QUIT\r\n")[:4] in {b"521 ", b"220 "}
    settle(daemon)
    daemon.wait_for(lambda: daemon.descriptors() == before, "the descriptors of the start")


@pytest.mark.parametrize("mode", ["session", "mail"])
def test_ten_thousand_half_open_sessions_are_held_and_let_go(start: Start, mode: str) -> None:
    """Clients that say nothing, or half a command, are held; the next hears 521; all go when they end, or when we do.

    They may have the descriptors that lingering clients leave them.
    """
    many = 10_000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    require(hard >= 15_000, "a limit of 15,000 open files")
    daemon = start("--mode", mode, "--max-sessions", str(many))
    with contextlib.ExitStack() as held:
        memory = daemon.memory()
        clients = [held.enter_context(connect(daemon.address)) for _ in range(many)]
        greetings = {client.recv(99) for client in clients}
        for client in clients[::2]:
            client.send(b"EHLO half")
        assert len(greetings) == 1
        assert daemon.stats()["talking"] == str(many)
        each = (daemon.memory() - memory) / many
        assert each < 8, "KiB for a session"  # 2.4 when measured
        assert visit(daemon.address, b"") == LINE
        for client in clients[: many // 2]:
            client.close()
        daemon.wait_for(lambda: daemon.stats()["talking"] == str(many // 2), "half of them gone")
        assert visit(daemon.address, b"QUIT\r\n").startswith(greetings.pop())
        daemon.process.send_signal(signal.SIGTERM)
        farewells = {read_all(client) for client in clients[many // 2 :]}
    assert len(farewells) == 1
    assert farewells.pop().startswith(b"421 ")
    assert daemon.process.wait(PATIENCE) == 0


def test_a_client_that_sends_commands_and_does_not_read_is_cut_off(start: Start) -> None:
    """Its window is full, and then our buffer: no reply is kept for it, and the others are answered."""
    daemon = start(
        *("--mode", "session", "--text", "x" * 500),
        prefix=network("echo 4096 4096 4096 > /proc/sys/net/ipv4/tcp_wmem"),  # what a dialogue can fill
    )
    with inside(daemon), socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        client.connect(daemon.address)
        client.sendall(b"NOOP\r\n" * 100)
        daemon.wait_for(lambda: daemon.stats()["talking"] == "0", "the end of the session")
        assert visit(daemon.address, b"QUIT\r\n").startswith(b"521 x")
        heard = 0
        with contextlib.suppress(ConnectionResetError):
            while octets := client.recv(4096):
                heard += len(octets)
        assert heard < 100 * len("521 \r\n" + "x" * 500)


def test_clients_with_a_window_of_zero_linger_and_are_let_go(start: Start) -> None:
    """The line cannot leave: they hold a descriptor for the linger time and no longer, and others are answered.

    Whoever opens the window later reads the line all the same: the kernel keeps it after our close.
    """
    require_tools("nft")
    daemon = start("--linger", "1", prefix=network())
    before = daemon.descriptors()
    inner = ["nsenter", f"--net=/proc/{daemon.pid}/ns/net", "nft"]
    rules = "table ip t { chain c { type filter hook output priority 0;\nip saddr 127.0.0.3 tcp window set 0\n}\n}"
    subprocess.run([*inner, "-f", "-"], input=rules.encode(), check=True, timeout=PATIENCE)
    with inside(daemon), contextlib.ExitStack() as held:
        clients = []
        for _ in range(200):
            client = held.enter_context(socket.socket())
            client.settimeout(PATIENCE)
            client.bind(("127.0.0.3", 0))
            client.connect(daemon.address)
            clients.append(client)
        assert visit(daemon.address, b"QUIT\r\n") == LINE
        daemon.wait_for(lambda: daemon.stats()["connections"] == "201", "all of them")
        settle(daemon)
        assert daemon.descriptors() == before
        for client in clients:
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)
            client.settimeout(PATIENCE)
        subprocess.run([*inner, "flush", "ruleset"], check=True, timeout=PATIENCE)
        assert {read_all(client) for client in clients} == {LINE}


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
    from nullsmtpd.runtime.process import new_loop

    loop = new_loop()
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
