"""What goes wrong with connections: system calls that fail, clients that vanish, do not read, or are too many."""

import contextlib
import errno
import fcntl
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from faults import failing, injecting, inside, network, stopped
from support import LINE, PATIENCE, Start, connect, read_all, require, require_tools, run_clients

CONNECTION_ERRORS = [errno.ECONNABORTED, errno.EPROTO, errno.EINTR, errno.ECONNRESET, errno.ENETDOWN]
#: Those after which nothing is accepted for a while; EPERM: by seccomp(2), with the connection left in the queue.
PAUSING_ERRORS = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM]


def test_with_64_descriptors_hundreds_at_once_are_answered(start: Start) -> None:
    """Soft and hard limit 64, 400 clients at a time: nobody is lost, nothing spins, one line tells what was lowered."""
    daemon = start(nofile=64)
    assert run_clients(daemon.address, "waits_for_the_line", 2000, 400) == {"whole line": 2000}
    assert daemon.stats()["accept_errors"] == "0"
    (lowered,) = daemon.lines("max-lingering-lowered")
    assert "wanted=4096" in lowered
    assert "64 files" in lowered
    assert daemon.wake_ups_within(1.0) == 0


def test_with_64_descriptors_early_talkers_are_evicted_without_a_reset(start: Start) -> None:
    """What they have sent is read before they are closed; a reset would show in SO_ERROR, where some clients look."""
    daemon = start("--linger", "60", nofile=64)
    with contextlib.ExitStack() as held:
        with stopped(daemon):
            clients = [held.enter_context(connect(daemon.address)) for _ in range(300)]
            for client in clients:
                client.sendall(b"EHLO client.example\r\n" * 100)
        daemon.wait_for(lambda: daemon.stats()["connections"] == "300", "all of them")
        stats = daemon.stats()
        assert int(stats["cut_short"]) == 300 - int(stats["lingering"])
        assert int(stats["cut_short"]) > 200
        assert [client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for client in clients] == [0] * 300
        assert {read_all(client) for client in clients} == {LINE}


def test_a_full_receive_window_is_read_before_an_eviction(start: Start) -> None:
    """100 KB that were all acknowledged: the line is not lost to a reset, whichever the client does first."""
    daemon = start("--linger", "60", "--max-lingering", "1")
    with connect(daemon.address) as client:
        client.sendall(b"x" * 100_000)
        deadline = time.monotonic() + PATIENCE
        while fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4)) != bytes(4):  # unacknowledged octets, tcp(7)
            if time.monotonic() > deadline:
                pytest.skip("needs a kernel whose receive window holds 100 KB from the start")
            time.sleep(0.01)
        assert visit(daemon.address, b"") == LINE
        assert daemon.stats()["cut_short"] == "1"
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert read_all(client) == LINE


def test_early_talkers_are_shed_without_a_reset(start: Start) -> None:
    """The older half makes room when descriptors have run out; what it has sent is read first."""
    daemon = start("--linger", "60")
    with contextlib.ExitStack() as held:
        with stopped(daemon):
            clients = [held.enter_context(connect(daemon.address)) for _ in range(20)]
            for client in clients:
                client.sendall(b"EHLO client.example\r\n")
        daemon.wait_for(lambda: daemon.stats()["connections"] == "20", "all of them")
        limit_descriptors(daemon.pid, daemon.descriptors())
        assert read_all(held.enter_context(connect(daemon.address))) == LINE
        assert daemon.stats()["cut_short"] == "10"
        assert [client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for client in clients] == [0] * 20
        assert {read_all(client) for client in clients} == {LINE}


@pytest.mark.parametrize(
    ("arguments", "sessions", "lingering"),
    [
        (("--max-sessions", "1000", "--max-lingering", "1000"), 0.5, 0.5),
        (("--max-sessions", "20", "--max-lingering", "1000"), None, 1),
        (("--max-sessions", "1000", "--max-lingering", "20"), 1, None),
    ],
)
def test_descriptors_are_split_between_sessions_and_lingering(
    start: Start, arguments: tuple[str, ...], sessions: float | None, lingering: float | None
) -> None:
    """Each gets what the other leaves, and half at least; both limits are reached, and no descriptor is lacking."""
    daemon = start("--mode", "session", "--linger", "60", *arguments, nofile=200)
    to = {}
    for name in ("max-sessions", "max-lingering"):
        found = [re.search(r" to=(\d+) ", line) for line in daemon.lines(f"{name}-lowered")]
        to[name] = int(found[0][1]) if found and found[0] else 20
    left = to["max-sessions"] + to["max-lingering"]
    assert 160 <= left < 200 - 10
    for limit, share in ((to["max-sessions"], sessions), (to["max-lingering"], lingering)):
        expected = 20 if share is None else left * share if share < 1 else left - 20
        assert abs(limit - expected) <= 1
    with contextlib.ExitStack() as held:
        for _ in range(left):
            client = held.enter_context(connect(daemon.address))
            assert client.recv(99) == LINE
        stats = daemon.stats()
        assert (stats["talking"], stats["lingering"]) == (str(to["max-sessions"]), str(to["max-lingering"]))
        assert daemon.descriptors() <= 200 - 4
        assert run_clients(daemon.address, "waits_for_the_line", 100, 50) == {"whole line": 100}
        assert daemon.stats()["accept_errors"] == "0"


def test_descriptors_taken_by_something_else_delay_clients_only(start: Start) -> None:
    """When accept fails with EMFILE all the same, the line comes late, not never, and the log says so once."""
    require(sys.platform == "linux", "prlimit")
    daemon = start()
    address = daemon.address
    idle = [connect(address) for _ in range(30)]  # these linger, and are shed
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


@pytest.mark.parametrize("number", [*CONNECTION_ERRORS, *PAUSING_ERRORS], ids=lambda number: errno.errorcode[number])
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
    assert len(daemon.lines("accept-paused")) == (number in PAUSING_ERRORS)
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
    assert len(daemon.lines("send-retry")) == 1
    assert daemon.stop() == 0
    assert trace.read_text().count("(INJECTED)") == 9


@pytest.mark.parametrize("name", ["EAGAIN", "ENOBUFS", "ENOMEM"])
def test_a_greeting_that_the_kernel_has_no_buffer_for_comes_later(start: Start, tmp_path: Path, name: str) -> None:
    """A client waits for it before its first command; the dialogue goes on as any other."""
    daemon = start(*TALK)
    with failing(daemon, tmp_path / "trace", f"sendto:error={name}:when=1..2"), connect(daemon.address) as client:
        assert client.recv(99).startswith(b"220 ")
        client.sendall(b"NOOP\r\nQUIT\r\n")
        assert re.fullmatch(rb"250 .*\r\n221 .*\r\n", read_all(client))


@pytest.mark.parametrize(
    ("said", "codes", "when"),
    [
        (b"QUIT\r\n", [b"220", b"221"], "1..2"),
        (b"QUIT\r\n", [b"220", b"221"], "2..5"),
        (b"NOOP\r\nQUIT\r\n", [b"220", b"250", b"221"], "2"),
        (b"", [b"220", b"421"], "2..3"),
    ],
)
def test_a_final_reply_that_the_kernel_has_no_buffer_for_comes_later(
    start: Start, tmp_path: Path, said: bytes, codes: list[bytes], when: str
) -> None:
    """To QUIT, or after a timeout; with the greeting before it where that had no buffer either, and with a FIN."""
    require_tools("strace")
    injected = injecting(tmp_path / "trace", f"sendto:error=EAGAIN:when={when}")
    daemon = start(*TALK, "--linger", "20", "--timeout", "1", prefix=injected)
    assert re.findall(rb"^(\d+) ", visit(daemon.address, said), re.MULTILINE) == codes
    daemon.wait_until_idle()


@pytest.mark.parametrize(("said", "codes"), [(b"NOOP\r\nQUIT\r\n", [b"220", b"250", b"221"]), (b"", [b"220"])])
def test_an_early_talker_gets_a_delayed_greeting_before_the_replies(
    start: Start, tmp_path: Path, said: bytes, codes: list[bytes]
) -> None:
    """Its commands, or its FIN, are here before the greeting can leave: nothing is lost, and the order is kept."""
    daemon = start(*TALK)
    with contextlib.ExitStack() as held:
        with stopped(daemon):
            client = held.enter_context(connect(daemon.address))
            client.sendall(said)
            client.shutdown(socket.SHUT_WR)
            held.enter_context(failing(daemon, tmp_path / "trace", "sendto:error=EAGAIN:when=1"))
        assert re.findall(rb"^(\d+) ", read_all(client), re.MULTILINE) == (
            [b"220", b"250", b"221"] if said else [b"220"]
        )


def visit(address: tuple[str, int], said: bytes) -> bytes:
    """Say this, read what comes, and return it; a client whose connection breaks returns what it had until then."""
    heard = b""
    with contextlib.suppress(ConnectionError), connect(address) as client:
        client.sendall(said)
        while octets := client.recv(4096):
            heard += octets
    return heard


CLOSE = ("--linger", "0.2")
TALK = ("--mode", "mail", "--hostname", "mx.example.org", *CLOSE)
BLAST = b"x" * (1 << 18)


@pytest.mark.parametrize("error", ["ECONNRESET", "EPIPE"])
@pytest.mark.parametrize(
    ("arguments", "call", "said"),
    [
        (CLOSE, "sendto", b""),
        (CLOSE, "shutdown", b""),
        ((*CLOSE, "--access-log"), "recvfrom", b"QUIT\r\n"),
        (TALK, "sendto", b"EHLO x\r\nQUIT\r\n"),
        (TALK, "recvfrom", b"EHLO x\r\nQUIT\r\n"),
        (TALK, "shutdown", b"QUIT\r\n"),
        (TALK, "recvfrom", b"QUIT\r\n" + BLAST),
    ],
)
def test_a_connection_that_breaks_in_any_call_concerns_one_client_only(  # noqa: PLR0913, PLR0917 - a table's columns
    start: Start, tmp_path: Path, arguments: tuple[str, ...], call: str, said: bytes, error: str
) -> None:
    """Three calls in turn find their connection reset: as many clients may lose something, and nothing is left open."""
    require_tools("strace")
    daemon = start(*arguments)
    visit(daemon.address, b"QUIT\r\n")  # the event loop keeps a descriptor in reserve from its first stream on
    daemon.wait_until_idle()
    before = daemon.descriptors()
    with failing(daemon, tmp_path / "trace", f"{call}:error={error}:when=1..3"):
        heard = [visit(daemon.address, said) for _ in range(10)]
    daemon.wait_until_idle()
    assert sum(answer[:4] in {b"521 ", b"220 "} and answer.endswith(b"\r\n") for answer in heard) >= 10 - 3
    assert visit(daemon.address, b"QUIT\r\n")[:4] in {b"521 ", b"220 "}
    daemon.wait_until_idle()
    daemon.wait_for(lambda: daemon.descriptors() == before, "the descriptors of the start")


def test_a_session_for_which_epoll_has_no_room_is_the_line_instead(start: Start, tmp_path: Path) -> None:
    """epoll_ctl(2): ENOSPC at fs.epoll.max_user_watches; the next client may find room again."""
    daemon = start(*TALK)
    for sessions in (1, 2):  # one of them is the first, which opens the epoll instance
        with failing(daemon, tmp_path / "trace", "epoll_ctl:error=ENOSPC:when=1"):
            assert visit(daemon.address, b"QUIT\r\n") == LINE
        assert visit(daemon.address, b"QUIT\r\n")[:4] == b"220 "
        daemon.wait_until_idle()
        assert daemon.stats()["sessions"] == str(sessions)


@pytest.mark.parametrize("fault", ["reset", "recvfrom:error=ECONNRESET:when=1..3", "recvfrom:error=EPIPE:when=1..3"])
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
    daemon.wait_until_idle()
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
    daemon.wait_until_idle()
    before = daemon.descriptors()
    for number in range(50):
        with connect(daemon.address) as client:
            assert client.recv(4) in {b"521 ", b"220 "}
            with contextlib.suppress(ConnectionError):
                client.sendall(said)
                if number % 2:  # with what the daemon says unread
                    client.recv(1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    daemon.wait_until_idle()
    assert visit(daemon.address, b"QUIT\r\n")[:4] in {b"521 ", b"220 "}
    daemon.wait_until_idle()
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
        daemon.wait_until_idle()
        assert daemon.descriptors() == before
        for client in clients:
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)
            client.settimeout(PATIENCE)
        subprocess.run([*inner, "flush", "ruleset"], check=True, timeout=PATIENCE)
        assert {read_all(client) for client in clients} == {LINE}


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
