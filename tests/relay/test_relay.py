"""``nullsmtpd relay`` as a real process, asked over real sockets, with a real name server behind it."""

import contextlib
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from activation import hand_over
from name_server import NameServer, name_server
from support import PATIENCE, Daemon, Start, connect, read_all, require, require_root, require_tools, run_cli

from nullsmtpd.relay.netstring import netstring

REFUSAL = netstring(b"OK 556 5.1.10 Domain does not accept mail")
NOT_FOUND = netstring(b"NOTFOUND ")
MALFORMED = netstring(b"PERM malformed netstring")


@pytest.fixture
def dns_server() -> Iterator[NameServer]:
    with name_server() as server:
        yield server


def relay(start: Start, server: NameServer, *arguments: str) -> Daemon:
    """Start it on a loopback port, asking this name server."""
    return start("relay", "--resolver", server.flag, *arguments)


def request(key: str | bytes) -> bytes:
    return netstring(b"nullmx " + (key.encode() if isinstance(key, str) else key))


def read_replies(client: socket.socket, count: int) -> list[bytes]:
    """Read this many netstrings, and not an octet more."""
    replies: list[bytes] = []
    for _ in range(count):
        head = b""
        while not head.endswith(b":"):
            octet = client.recv(1)
            assert octet, f"the end after {replies} and {head!r}"
            head += octet
        length, reply = int(head[:-1]) + 1, b""
        while len(reply) < length:
            reply += client.recv(length - len(reply))
        replies.append(head + reply)
    return replies


def ask(client: socket.socket, *keys: str | bytes) -> list[bytes]:
    """Ask for keys in one go and return the replies."""
    client.sendall(b"".join(map(request, keys)))
    return read_replies(client, len(keys))


@pytest.mark.parametrize(
    ("key", "reply"),
    [
        ("null.example", REFUSAL),
        ("NULL.Example.", REFUSAL),
        ("someone@null.example", REFUSAL),
        ('"odd@local part"@null.example', REFUSAL),
        ("plain.example", NOT_FOUND),
        ("beside.example", NOT_FOUND),
        ("preference.example", NOT_FOUND),
        ("empty.example", NOT_FOUND),
        ("absent.example", NOT_FOUND),
        ("someone@bücher.example", REFUSAL),
        ("someone@xn--bcher-kva.example", REFUSAL),
    ],
)
def test_a_null_mx_is_556_and_everything_else_is_not_found(
    start: Start, dns_server: NameServer, key: str, reply: bytes
) -> None:
    """RFC 7505 §3, RFC 7504 §4: only a domain that says so itself is refused."""
    dns_server.mx["xn--bcher-kva.example"] = ["0 ."]
    daemon = relay(start, dns_server)
    with connect(daemon.address) as client:
        assert ask(client, key, key) == [reply, reply]
    assert daemon.stats() | {"requests": "2", "questions": "1", "cache_hits": "1"} == daemon.stats()


@pytest.mark.parametrize(
    "key",
    [
        *("", "@", "someone@", "someone@[192.0.2.1]", "[IPv6:::1]", "192.0.2.1", "a..b", "x" * 64 + ".example"),
        *("x" * 4000, b"\xff\xfe", b"\0", "null.example\n", "a b"),
    ],
)
def test_what_is_no_domain_is_not_found_and_dns_is_not_asked(
    start: Start, dns_server: NameServer, key: str | bytes
) -> None:
    """Literals, absurd and over-long keys: mail is not refused for them, and the session goes on."""
    daemon = relay(start, dns_server)
    with connect(daemon.address) as client:
        assert ask(client, key, "null.example") == [NOT_FOUND, REFUSAL]
    assert daemon.stats()["not_domains"] == "1"
    assert {name for name, _ in dns_server.asked} == {"null.example"}


@pytest.mark.parametrize("fault", ["silence", "servfail", "refused", "garbage", "stranger"])
def test_when_dns_fails_mail_goes_on(start: Start, dns_server: NameServer, fault: str) -> None:
    """NOTFOUND within --timeout, counted, told of without the domain, and asked again soon: not cached for long."""
    dns_server.faults["null.example"] = fault
    daemon = relay(start, dns_server, "--timeout", "0.3")
    with connect(daemon.address) as client:
        daemon.wait_for(
            lambda: ask(client, "plain.example") and int(daemon.stats()["not_null"]) > 0, "an answer within so little"
        )
        before = int(daemon.stats()["dns_failures"])
        assert ask(client, "null.example", "plain.example") == [NOT_FOUND, NOT_FOUND]
        assert int(daemon.stats()["dns_failures"]) == before + 1
        assert len(daemon.lines("dns-failure")) == 1
        assert "null.example" not in daemon.log
        dns_server.faults.clear()
        daemon.wait_for(lambda: ask(client, "null.example") == [REFUSAL], "DNS asked again")


def test_without_any_name_server_mail_goes_on(start: Start) -> None:
    """Nobody listens where it asks."""
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        closed = taken.getsockname()[1]
    daemon = start("relay", "--resolver", f"127.0.0.1:{closed}", "--timeout", "0.3")
    with connect(daemon.address) as client:
        assert ask(client, "null.example") == [NOT_FOUND]


def test_a_truncated_answer_is_had_over_tcp(start: Start, dns_server: NameServer) -> None:
    """TC over UDP does not lose the null MX, under the real event loop."""
    dns_server.faults["null.example"] = "truncated"
    daemon = relay(start, dns_server)
    with connect(daemon.address) as client:
        assert ask(client, "null.example") == [REFUSAL]


def test_a_faulty_set_is_told_of_once(start: Start, dns_server: NameServer) -> None:
    """A root MX beside others or of another preference: counted, and one line for each name."""
    dns_server.ttl = 0
    daemon = relay(start, dns_server)
    with connect(daemon.address) as client:
        daemon.wait_for(lambda: ask(client, "beside.example") and dns_server.questions("beside.example") > 1, "expiry")
        ask(client, "preference.example")
    assert [line.split()[2] for line in daemon.lines("faulty-null-mx")] == [
        "domain=beside.example",
        "domain=preference.example",
    ]
    assert int(daemon.stats()["faulty_null_mx"]) >= 3


def test_many_clients_who_ask_at_once_make_one_question(start: Start, dns_server: NameServer) -> None:
    """While DNS takes its time, all of them wait for the same answer."""
    dns_server.faults["null.example"] = "held"
    daemon = relay(start, dns_server, "--timeout", "30")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(daemon.address)) for _ in range(50)]
        for client in clients:
            client.sendall(request("null.example"))
        daemon.wait_for(lambda: daemon.stats()["requests"] == "50", "all requests")
        assert daemon.stats()["asking"] == "1"
        dns_server.release()
        assert [read_replies(client, 1) for client in clients] == [[REFUSAL]] * 50
    assert daemon.stats()["questions"] == "1"


def test_a_client_that_leaves_while_dns_is_asked_does_no_harm(start: Start, dns_server: NameServer) -> None:
    """The answer is kept for the next one."""
    dns_server.faults["null.example"] = "held"
    daemon = relay(start, dns_server, "--timeout", "30")
    with connect(daemon.address) as client:
        client.sendall(request("null.example"))
        daemon.wait_for(lambda: daemon.stats()["asking"] == "1", "a question")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its end is a reset
    daemon.wait_for(lambda: daemon.stats()["talking"] == "0", "the client's leave")
    dns_server.release()
    daemon.wait_for(lambda: daemon.stats()["cached"] == "1", "the answer")
    with connect(daemon.address) as client:
        assert ask(client, "null.example") == [REFUSAL]


def test_requests_sent_ahead_are_answered_in_their_order(start: Start, dns_server: NameServer) -> None:
    """Cached, uncached and impossible ones, a thousand in one go, each octet by octet apart too."""
    daemon = relay(start, dns_server)
    keys = ["null.example", "plain.example", "[192.0.2.1]", "null.example", "absent.example"]
    wanted = [REFUSAL, NOT_FOUND, NOT_FOUND, REFUSAL, NOT_FOUND]
    with connect(daemon.address) as client:
        assert ask(client, *keys * 200) == wanted * 200
        for octet in b"".join(map(request, keys)):
            client.sendall(bytes([octet]))
        assert read_replies(client, 5) == wanted


def test_half_a_close_after_the_requests_still_gets_all_replies(start: Start, dns_server: NameServer) -> None:
    """A client that says all and then EOF reads every reply and then the end."""
    daemon = relay(start, dns_server)
    with connect(daemon.address) as client:
        client.sendall(request("null.example") + request("plain.example") + request("null.example"))
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == REFUSAL + NOT_FOUND + REFUSAL


@pytest.mark.parametrize(
    "octets", [b"hello\r\n", b"01:a,", b"5:nullm;", b"4097:", b"99999999999", b":", b"GET / HTTP/1.1"]
)
def test_what_is_no_netstring_gets_perm_and_the_end(start: Start, dns_server: NameServer, octets: bytes) -> None:
    """After replies to what came before; what comes after it is not looked at, and does not reset the connection."""
    daemon = relay(start, dns_server)
    with connect(daemon.address) as client:
        client.sendall(request("null.example") + octets + b"x" * 200_000)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == REFUSAL + MALFORMED
    assert daemon.stats()["malformed"] == "1"


@pytest.mark.parametrize("octets", [b"other null.example", b"nullmx", b"", b"NULLMX null.example", b" null.example"])
def test_another_map_is_perm_and_the_session_goes_on(start: Start, dns_server: NameServer, octets: bytes) -> None:
    """The operator's mistake is seen at the first test, socketmap_table(5)."""
    daemon = relay(start, dns_server)
    with connect(daemon.address) as client:
        client.sendall(netstring(octets) + request("null.example"))
        assert read_replies(client, 2) == [netstring(b"PERM unknown map; ask for nullmx"), REFUSAL]
    assert daemon.stats()["unknown_maps"] == "1"


def test_a_client_that_does_not_read_is_not_read_from(start: Start, dns_server: NameServer) -> None:
    """Back-pressure: megabytes of requests from a client which reads nothing do not become megabytes of ours."""
    daemon = relay(start, dns_server)
    with connect(daemon.address) as client:
        ask(client, "null.example")
        before = daemon.memory()
        client.setblocking(False)
        many = request("null.example") * 1000
        sent, quiet_since = 0, time.monotonic()
        while time.monotonic() < quiet_since + 0.5:
            try:
                sent += client.send(many)
                quiet_since = time.monotonic()
            except BlockingIOError:
                time.sleep(0.01)
        assert daemon.memory() - before < 2048
        assert int(daemon.stats()["requests"]) * len(REFUSAL) < 16 << 20
        with connect(daemon.address) as other:
            assert ask(other, "null.example") == [REFUSAL]


def test_hostile_keys_do_not_grow_the_memory(start: Start, dns_server: NameServer) -> None:
    """The cache holds as many names as it is told, whatever is asked for."""
    daemon = relay(start, dns_server, "--cache", "50")
    with connect(daemon.address) as client:
        for number in range(0, 500, 50):
            ask(client, *(f"{number + one}.{'x' * 60}.example" for one in range(50)))
    stats = daemon.stats()
    assert stats["questions"] == "500"
    assert stats["cached"] == "50"


def test_past_max_sessions_the_one_that_was_silent_longest_makes_room(start: Start, dns_server: NameServer) -> None:
    """A newcomer can ask; who was let go reads the end, and can come again."""
    daemon = relay(start, dns_server, "--max-sessions", "2")
    with connect(daemon.address) as first, connect(daemon.address) as second:
        ask(first, "null.example")
        ask(second, "null.example")
        ask(first, "null.example")
        with connect(daemon.address) as third:
            assert ask(third, "null.example") == [REFUSAL]
            assert read_all(second) == b""
            assert ask(first, "null.example") == [REFUSAL]
    assert daemon.stats() | {"sessions": "3", "let_go": "1", "refused": "0"} == daemon.stats()
    assert daemon.stop() == 0


def test_past_max_sessions_nobody_who_waits_is_let_go(start: Start, dns_server: NameServer) -> None:
    """With every place waiting for DNS, the newcomer is closed, and those who wait get their answer."""
    dns_server.faults["null.example"] = "held"
    daemon = relay(start, dns_server, "--max-sessions", "1", "--timeout", "30")
    with connect(daemon.address) as first:
        first.sendall(request("null.example"))
        daemon.wait_for(lambda: daemon.stats()["asking"] == "1", "a question")
        with connect(daemon.address) as second:
            assert read_all(second) == b""
        dns_server.release()
        assert read_replies(first, 1) == [REFUSAL]
    assert daemon.stats()["refused"] == "1"
    assert daemon.stop() == 0


def test_max_sessions_fits_into_the_limit_of_open_files(start: Start, dns_server: NameServer) -> None:
    """It is lowered and said so, and all places can be used."""
    daemon = start("relay", "--resolver", dns_server.flag, nofile=128)
    assert "wanted=1000 to=24" in daemon.lines("max-sessions-lowered")[0]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(daemon.address)) for _ in range(100)]
        assert ask(clients[-1], "null.example") == [REFUSAL]
    assert daemon.stats()["let_go"] == "76"


def test_clients_that_speak_no_netstrings_take_no_descriptor_from_the_others(
    start: Start, dns_server: NameServer
) -> None:
    """More of them than files may be open, who stay after their PERM: there is room for a client and its question."""
    daemon = start("relay", "--resolver", dns_server.flag, nofile=128)
    with contextlib.ExitStack() as stack:
        for _ in range(150):
            stray = stack.enter_context(connect(daemon.address))
            stray.sendall(b"x")
            assert read_replies(stray, 1) == [MALFORMED]
        with connect(daemon.address) as client:
            assert ask(client, "null.example") == [REFUSAL]
    assert daemon.stats()["malformed"] == "150"


def unix_socket(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(str(path))
    return client


def on_unix(start: Start, server: NameServer, path: Path, *arguments: str) -> Daemon:
    daemon = start("relay", "--resolver", server.flag, *arguments, listen=f"unix:{path}", count=0)
    daemon.wait_for(lambda: daemon.lines("listening"), "a listening line")
    return daemon


def test_a_unix_socket_is_for_every_user_and_gone_in_the_end(
    start: Start, dns_server: NameServer, tmp_path: Path
) -> None:
    """Mode 0666, one line with its path, removed when asked to end."""
    path = tmp_path / "relay"
    daemon = on_unix(start, dns_server, path)
    assert daemon.lines("listening")[0].endswith(f" listening address=unix:{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    with unix_socket(path) as client:
        assert ask(client, "null.example", "plain.example") == [REFUSAL, NOT_FOUND]
        client.sendall(b"nonsense")
        assert read_all(client) == MALFORMED
    assert daemon.stop() == 0
    assert not path.exists()


def test_the_socket_of_a_dead_process_is_replaced(start: Start, dns_server: NameServer, tmp_path: Path) -> None:
    """SIGKILL leaves the file behind; the next start takes its place."""
    path = tmp_path / "relay"
    first = on_unix(start, dns_server, path)
    first.process.kill()
    first.process.wait()
    assert path.exists()
    second = on_unix(start, dns_server, path)
    with unix_socket(path) as client:
        assert ask(client, "null.example") == [REFUSAL]
    assert second.stop() == 0


def test_the_socket_of_a_living_process_is_taken(start: Start, dns_server: NameServer, tmp_path: Path) -> None:
    """One line, exit status 1, and the first goes on; in the end it removes its own."""
    path = tmp_path / "relay"
    first = on_unix(start, dns_server, path)
    result = run_cli("relay", "--listen", f"unix:{path}")
    assert result.returncode == 1
    assert result.stderr == (
        f"nullsmtpd relay: --listen unix:{path}: taken: another process answers there; "
        "stop the program that uses it, or choose another path\n"
    )
    with unix_socket(path) as client:
        assert ask(client, "null.example") == [REFUSAL]
    assert first.stop() == 0
    assert not path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """Exit status 1, and the file keeps what it has."""
    path = tmp_path / "relay"
    path.write_text("mine")
    result = run_cli("relay", "--listen", f"unix:{path}")
    assert result.returncode == 1
    assert "a file that is no socket is there" in result.stderr
    assert path.read_text() == "mine"


def test_a_missing_directory_is_said_in_one_line(tmp_path: Path) -> None:
    """With the way out; exit status 1."""
    result = run_cli("relay", "--listen", f"unix:{tmp_path}/none/relay")
    assert result.returncode == 1
    assert result.stderr.endswith("No such file or directory; create its directory first\n")
    assert result.stderr.count("\n") == 1


def test_a_successors_socket_is_not_removed(start: Start, dns_server: NameServer, tmp_path: Path) -> None:
    """What is at the path in the end stays if it is somebody else's."""
    path = tmp_path / "relay"
    first = on_unix(start, dns_server, path)
    path.unlink()
    on_unix(start, dns_server, path)
    assert first.stop() == 0
    with unix_socket(path) as client:
        assert ask(client, "null.example") == [REFUSAL]


def command_with(sockets: Sequence[socket.socket], *arguments: str) -> list[str]:
    return hand_over(sockets, sys.executable, "-m", "nullsmtpd", "relay", *arguments)


def test_sockets_that_are_passed_in_replace_listen(dns_server: NameServer, tmp_path: Path) -> None:
    """A Unix and a TCP one; the manager's Unix socket stays in its directory in the end."""
    path = tmp_path / "relay"
    with socket.socket(socket.AF_UNIX) as local, socket.create_server(("127.0.0.1", 0)) as tcp:
        local.bind(str(path))
        local.listen()
        log_path = tmp_path / "log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command_with((local, tcp), "--resolver", dns_server.flag),
                stderr=log,
                pass_fds=[local.fileno(), tcp.fileno()],
            )
        daemon = Daemon(process, log_path)
        try:
            daemon.wait_for(lambda: len(daemon.lines("listening")) == 2, "the listening lines")
            assert daemon.lines("listening")[0].endswith(f"address=unix:{path}")
            with unix_socket(path) as client, connect(tcp.getsockname()) as other:
                assert ask(client, "null.example") == ask(other, "null.example") == [REFUSAL]
            assert daemon.stop() == 0
            assert path.exists()
        finally:
            process.kill()
            process.wait()


def test_a_datagram_socket_that_is_passed_in_is_refused() -> None:
    """One line with what would be right, exit status 1."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wrong:
        result = subprocess.run(
            command_with([wrong]),
            capture_output=True,
            text=True,
            check=False,
            pass_fds=[wrong.fileno()],
            timeout=PATIENCE,
        )
    assert result.returncode == 1
    assert "descriptor 3: not a listening TCP or Unix socket; pass listening" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_manager_hears_ready_and_stopping(start: Start, dns_server: NameServer, tmp_path: Path) -> None:
    """READY=1 once questions are answered, STOPPING=1 when told to end (sd_notify(3))."""
    require(sys.platform == "linux", "Linux's notification socket")
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(PATIENCE)
        daemon = start("relay", "--resolver", dns_server.flag, env={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "100000"})
        assert manager.recv(4096) == b"READY=1\nSTATUS=Answering on 1 sockets"
        assert manager.recv(4096) == b"WATCHDOG=1"
        assert daemon.stop() == 0
        while (state := manager.recv(4096)) == b"WATCHDOG=1":
            pass
        assert state.startswith(b"STOPPING=1\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_at_the_end_who_waits_gets_the_answer_and_who_does_not_the_end(
    start: Start, dns_server: NameServer, number: signal.Signals
) -> None:
    """Status 0, a stats line, and no client is left in the dark."""
    dns_server.faults["null.example"] = "held"
    daemon = relay(start, dns_server)
    with connect(daemon.address) as waiting, connect(daemon.address) as idle:
        waiting.sendall(request("null.example"))
        daemon.wait_for(lambda: daemon.stats()["asking"] == "1", "a question")
        before = len(daemon.lines("stats"))
        daemon.process.send_signal(number)
        assert read_all(idle) == b""
        dns_server.release()
        assert read_all(waiting) == REFUSAL
    assert daemon.process.wait(PATIENCE) == 0
    assert len(daemon.lines("stats")) == before + 1


@pytest.mark.parametrize("is_local", [False, True])
def test_at_the_end_who_waits_in_the_backlog_is_answered(
    start: Start, dns_server: NameServer, tmp_path: Path, *, is_local: bool
) -> None:
    """Who was connected and had asked when the signal came gets the reply, and no reset."""
    path = tmp_path / "relay"
    daemon = on_unix(start, dns_server, path) if is_local else relay(start, dns_server)
    with contextlib.ExitStack() as stack:
        daemon.process.send_signal(signal.SIGSTOP)
        clients = [stack.enter_context(unix_socket(path) if is_local else connect(daemon.address)) for _ in range(100)]
        for client in clients:
            client.sendall(request("null.example"))
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGCONT)
        assert [read_all(client) for client in clients] == [REFUSAL] * 100
    assert daemon.process.wait(PATIENCE) == 0


def test_a_second_signal_ends_it_at_once(start: Start, dns_server: NameServer, tmp_path: Path) -> None:
    """It waits for DNS no longer; status 0, and its socket is removed all the same."""
    dns_server.faults["null.example"] = "held"
    path = tmp_path / "relay"
    daemon = on_unix(start, dns_server, path, "--timeout", "60")
    with unix_socket(path) as client:
        client.sendall(request("null.example"))
        daemon.wait_for(lambda: daemon.stats()["asking"] == "1", "a question")
        before = len(daemon.lines("stats"))
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for(lambda: not path.exists(), "the first signal heard")
        assert daemon.stop() == 0
        assert len(daemon.lines("stats")) == before + 1


def test_a_signal_at_any_moment_of_the_start_ends_it_with_status_0(dns_server: NameServer) -> None:
    """During imports and after; no traceback."""
    for delay_ms in range(0, 600, 40):
        process = subprocess.Popen(
            [sys.executable, "-m", "nullsmtpd", "relay", "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE
        )
        with process:
            wait_until_caught(process.pid)
            time.sleep(delay_ms / 1000)
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, f"after {delay_ms} ms: {said!r}"
            assert b"Traceback" not in said


def wait_until_caught(pid: int) -> None:
    """Wait until the process has a handler for SIGTERM."""
    require(sys.platform == "linux", "Linux's /proc")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/status").read_text()
        caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1], 16)
        if caught & (1 << signal.SIGTERM - 1):
            return
    pytest.fail("no handler was ever installed")


def test_as_another_user_it_answers_and_root_is_given_up(start: Start, dns_server: NameServer, tmp_path: Path) -> None:
    """--user holds once the sockets are bound, those in root's directories too.

    And what a question needs was loaded before: where only root can read the interpreter, an IDN is still looked up.
    """
    require_root()
    path = tmp_path / "relay"
    dns_server.mx["xn--bcher-kva.example"] = ["0 ."]
    daemon = on_unix(start, dns_server, path, "--user", "nobody")
    with unix_socket(path) as client:
        assert ask(client, "null.example", "a@bücher.example", "gone.example") == [REFUSAL, REFUSAL, NOT_FOUND]
    assert Path(f"/proc/{daemon.pid}").stat().st_uid != 0
    assert daemon.lines("running-as-root") == []
    assert daemon.stop() == 0


def test_clients_of_every_kind_at_once_leave_it_as_it_was(start: Start, dns_server: NameServer) -> None:
    """Askers, babblers, and those who leave in the middle, side by side: right answers, no descriptor left over."""
    daemon = relay(start, dns_server)
    with connect(daemon.address) as client:
        ask(client, "null.example")
    daemon.wait_for(lambda: daemon.stats()["talking"] == "0", "nobody there")
    before = daemon.descriptors()
    wrong: list[object] = []

    def asks() -> None:
        for number in range(30):
            with connect(daemon.address) as client:
                if ask(client, "null.example", f"{number}.example", "x@null.example") != [REFUSAL, NOT_FOUND, REFUSAL]:
                    wrong.append(number)

    def babbles() -> None:
        for number in range(30):
            with contextlib.suppress(OSError), connect(daemon.address) as client:
                client.sendall(os.urandom(5000))
                client.sendall(request(f"left{number}.example"))

    crowd = [threading.Thread(target=kind) for kind in (asks, babbles) * 4]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert wrong == []
    daemon.wait_for(lambda: daemon.descriptors() <= before, "as few descriptors as before")
    stats = {name: int(value) for name, value in daemon.stats().items()}
    kinds = ("null_mx", "not_null", "dns_failures", "not_domains", "unknown_maps")
    assert stats["requests"] == sum(stats[kind] for kind in kinds)


def test_postfix_itself_reads_the_answers(start: Start, dns_server: NameServer, tmp_path: Path) -> None:
    """postmap(1) through socketmap_table(5), over both kinds of socket: 556 for a null MX, nothing otherwise.

    Its exit status is the same for NOTFOUND and PERM, but for PERM it says why.
    """
    require_tools("postmap")
    path = tmp_path / "relay"
    daemon = start("relay", "--resolver", dns_server.flag, "--listen", f"unix:{path}")
    host, port = daemon.address
    for table in (f"socketmap:unix:{path}:nullmx", f"socketmap:inet:{host}:{port}:nullmx"):
        assert postmap("x@null.example", table) == (0, "556 5.1.10 Domain does not accept mail\n", "")
        assert postmap("x@plain.example", table) == (1, "", "")
    status, found, said = postmap("x@null.example", f"socketmap:unix:{path}:typo")
    assert (status, found) == (1, "")
    assert "unknown map; ask for nullmx" in said


def postmap(key: str, table: str) -> tuple[int, str, str]:
    """Look a key up; return the exit status, what was found, and what was said about it."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    result = subprocess.run(
        ["postmap", "-q", key, table],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env=os.environ | {"PATH": path},
    )
    return result.returncode, result.stdout, result.stderr
