"""``nullsmtpd relay`` as a real process, asked over real sockets, with a real name server behind it."""

import contextlib
import os
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from activation import hand_over, outcome_with, service_manager
from faults import failing, stopped
from name_server import NameServer, name_server
from support import (
    PATIENCE,
    Daemon,
    Start,
    connect,
    read_all,
    require,
    require_root,
    require_tools,
    run_cli,
    running,
)

from nullsmtpd.relay.protocol import netstring

REFUSAL = netstring(b"OK 556 5.1.10 Domain does not accept mail")
SENDER_REFUSAL = netstring(b"OK 550 5.7.27 Sender address has null MX")
NOT_FOUND = netstring(b"NOTFOUND ")
MALFORMED = netstring(b"PERM malformed netstring")
UNKNOWN_MAP = netstring(b"PERM unknown map; the maps are nullmx and nullmxsender")


@pytest.fixture
def dns_server() -> Iterator[NameServer]:
    with name_server() as server:
        yield server


def relay(start: Start, server: NameServer, *arguments: str) -> Daemon:
    """Start it on a loopback port, with this name server."""
    return start("relay", "--resolver", server.flag, *arguments)


def request(key: str | bytes, name: str = "nullmx") -> bytes:
    return netstring(name.encode() + b" " + (key.encode() if isinstance(key, str) else key))


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


def ask(client: socket.socket, *keys: str | bytes, name: str = "nullmx") -> list[bytes]:
    """Look keys up in one go and return the replies."""
    client.sendall(b"".join(request(key, name) for key in keys))
    return read_replies(client, len(keys))


def counted(daemon: Daemon, **expected: int) -> bool:
    """Return whether the counters have these values."""
    stats = daemon.stats()
    return all(stats[name] == str(value) for name, value in expected.items())


NULL = ("null.example", "NULL.Example.", "someone@null.example", '"odd@local part"@null.example')
IDN = ("someone@bücher.example", "someone@xn--bcher-kva.example", "someone@☃.example", "someone@_x.bücher.example")
OTHERS = ("plain.example", "beside.example", "preference.example", "empty.example", "absent.example")


@pytest.mark.parametrize(("name", "refusal"), [("nullmx", REFUSAL), ("nullmxsender", SENDER_REFUSAL)])
def test_a_null_mx_is_refused_and_everything_else_is_not_found(
    start: Start, dns_server: NameServer, name: str, refusal: bytes
) -> None:
    """RFC 7504 §4 and RFC 7505 §3, §4.2: only a domain whose own MX set says so; DNS is asked once for each."""
    for a_labels in ("xn--bcher-kva.example", "xn--n3h.example", "_x.xn--bcher-kva.example"):
        dns_server.mx[a_labels] = ["0 ."]
    daemon = relay(start, dns_server)
    with connect(daemon.address) as client:
        for _ in range(2):
            assert ask(client, *NULL, *IDN, name=name) == [refusal] * (len(NULL) + len(IDN))
            assert ask(client, *OTHERS, name=name) == [NOT_FOUND] * len(OTHERS)
    assert counted(daemon, requests=26, null_mx=16, not_null_mx=10, queries=9, cache_hits=17)


def test_both_maps_share_the_cache(start: Start, dns_server: NameServer) -> None:
    """One DNS query for a domain, whichever map it is looked up in first."""
    daemon = relay(start, dns_server)
    with connect(daemon.address) as client:
        client.sendall(request("null.example") + request("x@null.example", "nullmxsender"))
        assert read_replies(client, 2) == [REFUSAL, SENDER_REFUSAL]
    assert dns_server.queries("null.example") == 1


def test_keys_without_a_domain_are_not_found_and_dns_is_not_asked(start: Start, dns_server: NameServer) -> None:
    """Literals, local parts, the null sender, absurd and over-long keys: mail is not refused because of them."""
    keys: list[str | bytes] = [
        *("", "@", "<>", "someone@", "postmaster", "someone@[192.0.2.1]", "[IPv6:::1]", "192.0.2.1", "a..b", "a b"),
        *("x" * 64 + ".example", "x" * 4000, b"\xff\xfe", b"\0", "null.example\n"),
    ]
    daemon = relay(start, dns_server)
    with connect(daemon.address) as client:
        assert ask(client, *keys, "null.example") == [NOT_FOUND] * len(keys) + [REFUSAL]
        assert ask(client, *keys, "null.example", name="nullmxsender") == [NOT_FOUND] * len(keys) + [SENDER_REFUSAL]
    assert counted(daemon, not_domains=2 * len(keys))
    assert {name for name, _ in dns_server.asked} == {"null.example"}


def test_excepted_domains_are_not_found_and_dns_is_not_asked(start: Start, dns_server: NameServer) -> None:
    """--except, for domains that this host delivers to regardless of DNS; with a dot in front, all below them."""
    dns_server.mx |= {"a.null.example": ["0 ."], "below.example": ["0 ."], "a.b.below.example": ["0 ."]}
    daemon = relay(start, dns_server, "--except", "Null.Example", "--except", ".below.example", "--except", "bücher.de")
    with connect(daemon.address) as client:
        excepted = ("root@null.example", "a.b.below.example", "xn--bcher-kva.de")
        assert ask(client, *excepted) == ask(client, *excepted, name="nullmxsender") == [NOT_FOUND] * 3
        assert ask(client, "a.null.example", "below.example") == [REFUSAL] * 2
    assert counted(daemon, excepted=6, null_mx=2)
    assert {name for name, _ in dns_server.asked} == {"a.null.example", "below.example"}


def test_when_dns_fails_mail_goes_on(start: Start, dns_server: NameServer) -> None:
    """NOTFOUND within --timeout; counted, logged without the domain, and asked again some seconds later."""
    faults = ("silence", "servfail", "refused", "garbage", "stranger", "referral", "alias")
    domains = [f"{fault}.example" for fault in faults]
    dns_server.mx |= {domain: ["0 ."] for domain in domains}
    dns_server.faults = dict(zip(domains, faults, strict=True))
    daemon = relay(start, dns_server, "--timeout", "0.5")
    with connect(daemon.address) as client:
        assert ask(client, *domains) == [NOT_FOUND] * len(domains)
        assert counted(daemon, dns_failures=len(domains))
        assert len(daemon.lines("dns-failure")) == 1
        assert ".example" not in daemon.log
        dns_server.faults.clear()
        daemon.wait_for(lambda: ask(client, *domains) == [REFUSAL] * len(domains), "the same domains asked again")


def test_without_any_name_server_mail_goes_on(start: Start) -> None:
    """Nothing listens at the address."""
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        closed = taken.getsockname()[1]
    daemon = start("relay", "--resolver", f"127.0.0.1:{closed}")
    with connect(daemon.address) as client:
        assert ask(client, "null.example") == [NOT_FOUND]
    assert "Connection refused" in daemon.lines("dns-failure")[0]


RESOLV_CONF = """\
; written by a tool that nobody knows
nameserver
nameserver ns.example
search \N{LATIN SMALL LETTER U WITH DIAERESIS}.example .
nameserver 127.0.0.9 # nothing answers there
nameserver fe80::1%a..\N{LATIN SMALL LETTER U WITH DIAERESIS}
options timeout:5 attempts:x
"""

# Arguments: a file to use as /etc/resolv.conf, the interpreter, the name server's program, and the command. When that
# ends, which is process 1 of the namespace, the kernel ends the others. The first server is a socket that nobody reads.
# The interface has a name that is no host name.
IN_NAMESPACE = """
set -e
mount --bind "$1" /etc/resolv.conf
ip link set lo name a..\N{LATIN SMALL LETTER U WITH DIAERESIS}
ip link set a..\N{LATIN SMALL LETTER U WITH DIAERESIS} up
ip address add fe80::1/64 dev a..\N{LATIN SMALL LETTER U WITH DIAERESIS} nodad
"$2" -c 'import signal, socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(("127.0.0.9", 53)); signal.pause()' &
"$2" "$3" fe80::1%1 53 &
shift 3
exec "$@"
"""


def test_a_malformed_resolv_conf_with_a_dead_server_works_as_it_does_for_glibc(start: Start, tmp_path: Path) -> None:
    """Malformed lines are skipped, and the dead first server leaves time for the second, a link-local one."""
    require_root()
    require_tools("unshare", "ip", "mount")
    conf, path = tmp_path / "resolv.conf", tmp_path / "relay"
    conf.write_text(RESOLV_CONF)
    unshare = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", IN_NAMESPACE, "sh")
    program = str(Path(__file__).parents[1] / "name_server.py")
    daemon = start("relay", prefix=(*unshare, str(conf), sys.executable, program), listen=f"unix:{path}", count=0)
    daemon.wait_for(lambda: daemon.lines("listening"), "a listening line")
    with unix_socket(path) as client:
        daemon.wait_for(lambda: ask(client, "null.example") == [REFUSAL], "the name server's answer")
        assert ask(client, "other.example", "plain.example") == [NOT_FOUND] * 2


def test_many_clients_that_ask_at_once_make_one_query(start: Start, dns_server: NameServer) -> None:
    """All of them wait for the same answer."""
    dns_server.faults["null.example"] = "held"
    daemon = relay(start, dns_server, "--timeout", "30")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(daemon.address)) for _ in range(50)]
        for client in clients:
            client.sendall(request("null.example"))
        daemon.wait_for(lambda: counted(daemon, requests=50, pending=1), "all requests")
        dns_server.release()
        assert [read_replies(client, 1) for client in clients] == [[REFUSAL]] * 50
    assert counted(daemon, queries=1)


def test_a_client_that_leaves_while_dns_is_asked_does_no_harm(start: Start, dns_server: NameServer) -> None:
    """The answer is cached for the next one."""
    dns_server.faults["null.example"] = "held"
    daemon = relay(start, dns_server, "--timeout", "30")
    with connect(daemon.address) as client:
        client.sendall(request("null.example"))
        daemon.wait_for(lambda: counted(daemon, pending=1), "a query")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() resets
    daemon.wait_for(lambda: counted(daemon, talking=0), "no client")
    dns_server.release()
    daemon.wait_for(lambda: counted(daemon, cached=1), "the answer")
    with connect(daemon.address) as client:
        assert ask(client, "null.example") == [REFUSAL]


@pytest.mark.parametrize("octets", [b"20:null", b"x", request("null.example"), request("null.example") + b"20:null"])
def test_a_client_that_sends_and_resets_at_once_does_no_harm(
    start: Start, dns_server: NameServer, octets: bytes
) -> None:
    """Its input and the reset are one event, of which uvloop reports no second one; the next client is served."""
    daemon = relay(start, dns_server)
    for _ in range(2):
        with stopped(daemon), connect(daemon.address) as client:
            client.sendall(octets)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() resets
        daemon.wait_for(lambda: counted(daemon, talking=0), "no client")
        with connect(daemon.address) as client:
            assert ask(client, "null.example") == [REFUSAL]


def test_requests_sent_ahead_are_answered_in_order(start: Start, dns_server: NameServer) -> None:
    """Cached, not cached, and without a domain; a thousand in one go, and octet by octet."""
    daemon = relay(start, dns_server)
    keys = ["null.example", "plain.example", "[192.0.2.1]", "null.example", "absent.example"]
    replies = [REFUSAL, NOT_FOUND, NOT_FOUND, REFUSAL, NOT_FOUND]
    with connect(daemon.address) as client:
        assert ask(client, *keys * 200) == replies * 200
        for octet in b"".join(map(request, keys)):
            client.sendall(bytes([octet]))
        assert read_replies(client, 5) == replies


def test_a_client_that_half_closes_gets_all_replies(start: Start, dns_server: NameServer) -> None:
    """Then the connection is closed."""
    daemon = relay(start, dns_server)
    with connect(daemon.address) as client:
        client.sendall(request("null.example") + request("plain.example") + request("null.example"))
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == REFUSAL + NOT_FOUND + REFUSAL


@pytest.mark.parametrize(
    "octets", [b"hello\r\n", b"01:a,", b"5:nullm;", b"4097:", b"99999999999", b":", b"GET / HTTP/1.1"]
)
def test_malformed_input_gets_perm_and_the_end(start: Start, dns_server: NameServer, octets: bytes) -> None:
    """After the replies to what came before. Further input is discarded, and does not reset the connection."""
    daemon = relay(start, dns_server)
    with connect(daemon.address) as client:
        client.sendall(request("null.example") + octets + b"x" * 200_000)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == REFUSAL + MALFORMED
    assert counted(daemon, malformed=1)


def test_another_map_is_perm_and_the_connection_stays(start: Start, dns_server: NameServer) -> None:
    """The operator's mistake is seen at the first test, socketmap_table(5)."""
    requests = [b"other null.example", b"nullmx", b"", b"NULLMX null.example", b" null.example", b"nullmxer x.example"]
    daemon = relay(start, dns_server)
    with connect(daemon.address) as client:
        client.sendall(b"".join(map(netstring, requests)) + request("null.example"))
        assert read_replies(client, len(requests) + 1) == [UNKNOWN_MAP] * len(requests) + [REFUSAL]
    assert counted(daemon, unknown_maps=len(requests))


def test_a_client_that_does_not_read_is_not_read_from(start: Start, dns_server: NameServer) -> None:
    """Back-pressure: its megabytes of requests do not become memory of this process."""
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


def test_the_cache_is_bounded(start: Start, dns_server: NameServer) -> None:
    """It holds as many domains as it is told, whatever is asked for."""
    daemon = relay(start, dns_server, "--cache", "50")
    with connect(daemon.address) as client:
        for number in range(0, 500, 50):
            ask(client, *(f"{number + one}.{'x' * 60}.example" for one in range(50)))
    assert counted(daemon, queries=500, cached=50)


def test_past_max_sessions_the_longest_idle_client_is_evicted(start: Start, dns_server: NameServer) -> None:
    """Its connection is closed, and it can connect again."""
    daemon = relay(start, dns_server, "--max-sessions", "2")
    with connect(daemon.address) as first, connect(daemon.address) as second:
        ask(first, "null.example")
        ask(second, "null.example")
        ask(first, "null.example")
        with connect(daemon.address) as third:
            assert ask(third, "null.example") == [REFUSAL]
            assert read_all(second) == b""
            assert ask(first, "null.example") == [REFUSAL]
    assert counted(daemon, sessions=3, evicted=1, refused=0)
    assert daemon.stop() == 0


def test_past_max_sessions_no_client_that_waits_is_evicted(start: Start, dns_server: NameServer) -> None:
    """When all wait for DNS, the newcomer is refused, and the others get their replies."""
    dns_server.faults["null.example"] = "held"
    daemon = relay(start, dns_server, "--max-sessions", "1", "--timeout", "30")
    with connect(daemon.address) as first:
        first.sendall(request("null.example"))
        daemon.wait_for(lambda: counted(daemon, pending=1), "a query")
        with connect(daemon.address) as second:
            assert read_all(second) == b""
        dns_server.release()
        assert read_replies(first, 1) == [REFUSAL]
    assert counted(daemon, refused=1)
    assert daemon.stop() == 0


@pytest.mark.parametrize("listeners", [1, 30])
def test_max_sessions_fits_into_the_limit_of_open_files(
    start: Start, dns_server: NameServer, tmp_path: Path, listeners: int
) -> None:
    """It is lowered, which is logged; each client has room for its query, also beside clients that are rejected."""
    dns_server.faults["*"] = "held"
    others = [text for number in range(1, listeners) for text in ("--listen", f"unix:{tmp_path}/{number}")]
    daemon = start("relay", "--resolver", dns_server.flag, *others, nofile=128, count=listeners)
    lowered = daemon.lines("max-sessions-lowered")[0]
    limit = int(lowered.partition(" to=")[2].split()[0])
    assert 40 < limit + listeners / 2 < 60
    with contextlib.ExitStack() as stack:
        for _ in range(150):
            stray = stack.enter_context(connect(daemon.address))
            stray.sendall(b"x")
            assert read_replies(stray, 1) == [MALFORMED]
        clients = [stack.enter_context(connect(daemon.address)) for _ in range(limit)]
        for number, client in enumerate(clients):
            client.sendall(request(f"{number}.example"))
        daemon.wait_for(lambda: counted(daemon, requests=limit, pending=limit), "a query of each")
        dns_server.release()
        assert [read_replies(client, 1) for client in clients] == [[NOT_FOUND]] * limit
    assert counted(daemon, dns_failures=0, refused=0, malformed=150)


def test_too_low_a_limit_of_open_files_is_an_error(dns_server: NameServer) -> None:
    """Exit status 1 and one line, rather than a process that answers nobody."""
    command = [sys.executable, "-m", "nullsmtpd", "relay", "--listen", "127.0.0.1:0"]
    limited = ["sh", "-c", 'ulimit -n 24; exec "$@"', "sh", *command]
    result = subprocess.run(limited, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "the limit of open files is 24" in result.stderr


def test_metrics_have_the_counters(start: Start, dns_server: NameServer) -> None:
    """In the Prometheus text format, without domains or addresses."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    daemon = relay(start, dns_server, "--metrics", f"127.0.0.1:{port}", "--except", "own.example")
    assert daemon.lines("metrics")[0].endswith(f"address=127.0.0.1:{port}")
    with connect(daemon.address) as client:
        ask(client, "null.example", "null.example", "plain.example", "own.example", "postmaster")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as response:
            text = response.read().decode()
    assert {
        'nullsmtpd_relay_requests_total{result="null_mx"} 2',
        'nullsmtpd_relay_requests_total{result="not_null_mx"} 1',
        'nullsmtpd_relay_requests_total{result="dns_failures"} 0',
        'nullsmtpd_relay_requests_total{result="not_domains"} 1',
        'nullsmtpd_relay_requests_total{result="excepted"} 1',
        'nullsmtpd_relay_requests_total{result="unknown_maps"} 0',
        "nullsmtpd_relay_cache_hits_total 1",
        "nullsmtpd_relay_queries_total 2",
        "nullsmtpd_relay_talking 1",
        "nullsmtpd_relay_cached 2",
    } <= set(text.splitlines())
    assert "process_open_fds" in text
    assert ".example" not in text


def unix_socket(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(str(path))
    return client


def on_unix(start: Start, server: NameServer, path: Path, *arguments: str) -> Daemon:
    daemon = start("relay", "--resolver", server.flag, *arguments, listen=f"unix:{path}", count=0)
    daemon.wait_for(lambda: daemon.lines("listening"), "a listening line")
    return daemon


def test_a_unix_socket_is_for_every_user_and_is_removed_in_the_end(
    start: Start, dns_server: NameServer, tmp_path: Path
) -> None:
    """Mode 0666; the log has its path; nothing else is left in the directory."""
    path = tmp_path / "run" / "relay"
    path.parent.mkdir()
    daemon = on_unix(start, dns_server, path)
    assert daemon.lines("listening")[0].endswith(f" listening address=unix:{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    with unix_socket(path) as client:
        assert ask(client, "null.example", "plain.example") == [REFUSAL, NOT_FOUND]
        client.sendall(b"nonsense")
        assert read_all(client) == MALFORMED
    assert daemon.stop() == 0
    assert list(path.parent.iterdir()) == []


def test_the_socket_of_a_running_process_is_taken(start: Start, dns_server: NameServer, tmp_path: Path) -> None:
    """One line, exit status 1, and the first continues; in the end it removes its own socket."""
    path = tmp_path / "relay"
    first = on_unix(start, dns_server, path)
    result = run_cli("relay", "--listen", f"unix:{path}")
    assert result.returncode == 1
    assert result.stderr == (
        f"nullsmtpd relay: --listen unix:{path}: taken: another process answers there; "
        "stop the program that uses it, or choose another address\n"
    )
    with unix_socket(path) as client:
        assert ask(client, "null.example") == [REFUSAL]
    assert first.stop() == 0
    assert not path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """Exit status 1, and the file keeps its contents."""
    path = tmp_path / "relay"
    path.write_text("mine")
    result = run_cli("relay", "--listen", f"unix:{path}")
    assert result.returncode == 1
    assert "a file that is no socket is there; remove that file" in result.stderr
    assert path.read_text() == "mine"


def read_only(path: Path) -> list[str]:
    """Return a command that runs another with a directory mounted read-only."""
    require_root()
    require_tools("unshare", "mount")
    mount = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", mount, "sh", str(path)]


@pytest.mark.parametrize(
    ("prefix", "path", "message"),
    [
        (None, "none/relay", "No such file or directory; create its directory first\n"),
        (None, "file/relay", "Not a directory; choose a path whose directories are directories\n"),
        (read_only, "relay", "Read-only file system; choose a directory that this user may write to\n"),
    ],
)
def test_a_directory_that_cannot_have_the_socket_is_an_error(
    tmp_path: Path, prefix: Callable[[Path], list[str]] | None, path: str, message: str
) -> None:
    """One line with the remedy; exit status 1."""
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "nullsmtpd", "relay", "--listen", f"unix:{tmp_path}/{path}"]
    full = [*(prefix(tmp_path) if prefix else ()), *command]
    result = subprocess.run(full, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert result.returncode == 1
    assert result.stderr.endswith(message)
    assert result.stderr.count("\n") == 1


def test_the_socket_of_a_successor_is_not_removed(start: Start, dns_server: NameServer, tmp_path: Path) -> None:
    """An operator has removed the first one's."""
    path = tmp_path / "relay"
    first = on_unix(start, dns_server, path)
    path.unlink()
    on_unix(start, dns_server, path)
    assert first.stop() == 0
    with unix_socket(path) as client:
        assert ask(client, "null.example") == [REFUSAL]


def command_with(sockets: Sequence[socket.socket], *arguments: str) -> list[str]:
    return hand_over(sockets, sys.executable, "-m", "nullsmtpd", "relay", *arguments)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sockets_that_are_passed_in_replace_listen_and_stay(
    dns_server: NameServer, tmp_path: Path, number: signal.Signals
) -> None:
    """A Unix and a TCP socket. The service manager goes on using them: the file is not removed, on any Python."""
    path = tmp_path / "relay"
    with socket.socket(socket.AF_UNIX) as local, socket.create_server(("127.0.0.1", 0)) as tcp:
        local.bind(str(path))
        local.listen()
        for _ in range(2):
            command = command_with((local, tcp), "--resolver", dns_server.flag)
            descriptors = [local.fileno(), tcp.fileno()]
            with running(command, tmp_path / "log", listeners=2, pass_fds=descriptors) as daemon:
                assert daemon.lines("listening")[0].endswith(f"address=unix:{path}")
                with unix_socket(path) as client, connect(tcp.getsockname()) as other:
                    assert ask(client, "null.example") == ask(other, "null.example") == [REFUSAL]
                assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)  # no reply waits for an earlier one's ACK
                assert daemon.stop(number) == 0
                assert path.exists()


@pytest.mark.parametrize("is_local", [False, True])
def test_a_listener_that_is_shut_down_by_another_process_ends_it(
    dns_server: NameServer, tmp_path: Path, *, is_local: bool
) -> None:
    """Exit status 1 and one line, rather than a process that looks healthy and answers nobody."""
    with contextlib.ExitStack() as stack:
        if is_local:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(tmp_path / "relay"))
            listener.listen()
        else:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        command = command_with([listener], "--resolver", dns_server.flag)
        daemon = stack.enter_context(running(command, tmp_path / "log", pass_fds=[listener.fileno()]))
        listener.shutdown(socket.SHUT_RDWR)
        assert daemon.process.wait(PATIENCE) == 1
        assert daemon.log.endswith(": the listening socket was shut down; restart the program that passes it in\n")


@pytest.mark.parametrize("name", ["EMFILE", "EPERM", "EACCES"])
def test_where_accept_fails_it_accepts_later(start: Start, dns_server: NameServer, tmp_path: Path, name: str) -> None:
    """Out of descriptors, or by a security policy: clients wait in the accept queue, and nothing spins meanwhile."""
    daemon = relay(start, dns_server)
    trace = tmp_path / "trace"
    with failing(daemon, trace, f"accept4:error={name}:when=1..3"), connect(daemon.address) as client:
        assert ask(client, "null.example") == [REFUSAL]
    until_last_failure, _, _ = trace.read_text().rpartition("(INJECTED)")
    assert len(re.findall(r"^epoll_p?wait2?\(.*\) += 0$", until_last_failure, re.MULTILINE)) >= 2  # timers, no events


def test_without_room_in_epoll_it_accepts_later(start: Start, dns_server: NameServer, tmp_path: Path) -> None:
    """After such a pause, at fs.epoll.max_user_watches, the listening socket cannot be watched again for a while."""
    daemon = relay(start, dns_server)
    trace = tmp_path / "trace"
    with contextlib.ExitStack() as stack:
        # Three calls remove the listening socket from epoll; the fourth would watch it again.
        with failing(daemon, trace, "accept4,epoll_ctl:error=ENOSPC:when=4+"):
            client = [stack.enter_context(connect(daemon.address)) for _ in range(4)][-1]
            daemon.wait_for(lambda: trace.read_text().count("EPOLL_CTL_ADD") >= 3, "three tries to accept again")
        assert ask(client, "null.example") == [REFUSAL]


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_socket_of_datagrams_or_packets_that_is_passed_in_is_an_error(kind: int) -> None:
    """One line with what would be valid, exit status 1; a socket of packets may listen, unix(7)."""
    with socket.socket(socket.AF_UNIX, kind) as wrong:
        wrong.bind("")
        if kind == socket.SOCK_SEQPACKET:
            wrong.listen()
        result = outcome_with(wrong, command_with([wrong]))
    assert result.returncode == 1
    assert "descriptor 3: not a listening TCP or Unix socket; pass listening" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_service_manager_is_notified(start: Start, dns_server: NameServer, tmp_path: Path) -> None:
    """READY=1 once it answers, WATCHDOG=1 from the event loop, STOPPING=1 when it shuts down (sd_notify(3))."""
    require(sys.platform == "linux", "Linux's notification socket")
    path = str(tmp_path / "notify")
    with service_manager(path) as manager:
        daemon = start("relay", "--resolver", dns_server.flag, env={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "100000"})
        assert manager.recv(4096) == b"READY=1\nSTATUS=Answering on 1 sockets"
        assert manager.recv(4096) == b"WATCHDOG=1"
        assert daemon.stop() == 0
        while (state := manager.recv(4096)) == b"WATCHDOG=1":
            pass
        assert state.startswith(b"STOPPING=1\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_at_shutdown_a_client_that_waits_gets_its_reply(
    start: Start, dns_server: NameServer, number: signal.Signals
) -> None:
    """An idle one is disconnected. Status 0, and one stats line."""
    dns_server.faults["null.example"] = "held"
    daemon = relay(start, dns_server)
    with connect(daemon.address) as waiting, connect(daemon.address) as idle:
        waiting.sendall(request("null.example"))
        daemon.wait_for(lambda: counted(daemon, pending=1), "a query")
        before = len(daemon.lines("stats"))
        daemon.process.send_signal(number)
        assert read_all(idle) == b""
        dns_server.release()
        assert read_all(waiting) == REFUSAL
    assert daemon.process.wait(PATIENCE) == 0
    assert len(daemon.lines("stats")) == before + 1


@pytest.mark.parametrize("is_local", [False, True])
def test_at_shutdown_the_accept_queue_is_answered(
    start: Start, dns_server: NameServer, tmp_path: Path, *, is_local: bool
) -> None:
    """A client that was connected when the signal came, and has sent its request, gets the reply and no reset."""
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


def test_at_shutdown_connections_that_failed_hide_no_others(
    start: Start, dns_server: NameServer, tmp_path: Path
) -> None:
    """accept(2) reports errors of a connection that nobody can use any more; those behind it are answered."""
    daemon = relay(start, dns_server)
    with contextlib.ExitStack() as stack:
        with stopped(daemon):
            stack.enter_context(failing(daemon, tmp_path / "trace", "accept4:error=ECONNABORTED:when=1..20"))
            clients = [stack.enter_context(connect(daemon.address)) for _ in range(5)]
            for client in clients:
                client.sendall(request("null.example"))
            daemon.process.send_signal(signal.SIGTERM)
        assert [read_all(client) for client in clients] == [REFUSAL] * 5
    assert daemon.process.wait(PATIENCE) == 0


def test_a_second_signal_ends_it_at_once(start: Start, dns_server: NameServer, tmp_path: Path) -> None:
    """Without waiting for DNS; status 0, and its socket is removed all the same."""
    dns_server.faults["null.example"] = "held"
    path = tmp_path / "relay"
    daemon = on_unix(start, dns_server, path, "--timeout", "60")
    with unix_socket(path) as client:
        client.sendall(request("null.example"))
        daemon.wait_for(lambda: counted(daemon, pending=1), "a query")
        before = len(daemon.lines("stats"))
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for(lambda: not path.exists(), "the first signal")
        assert daemon.stop() == 0
        assert len(daemon.lines("stats")) == before + 1


# Runs a command as a parent that has SIGTERM, SIGINT and SIGHUP blocked, and that ignores SIGTERM and SIGINT.
BLOCKED = (
    "import os, signal, sys; numbers = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}\n"
    "signal.pthread_sigmask(signal.SIG_BLOCK, numbers)\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_inherited_signal_mask_changes_nothing(start: Start, dns_server: NameServer, number: signal.Signals) -> None:
    """Nor do inherited dispositions."""
    daemon = start("relay", "--resolver", dns_server.flag, prefix=(sys.executable, "-c", BLOCKED))
    with connect(daemon.address) as client:
        assert ask(client, "null.example") == [REFUSAL]
    assert daemon.stop(number) == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2, signal.SIGALRM, signal.SIGPIPE])
def test_signals_without_a_use_disconnect_nobody(start: Start, dns_server: NameServer, number: signal.Signals) -> None:
    """SIGHUP, as from logrotate, is logged: there is nothing to reload."""
    prefix = ("setsid", "env", "--default-signal=HUP")  # no controlling terminal, and under nohup(1) too
    daemon = start("relay", "--resolver", dns_server.flag, prefix=prefix)
    with connect(daemon.address) as client:
        ask(client, "null.example")
        daemon.process.send_signal(number)
        assert ask(client, "null.example") == [REFUSAL]
        assert counted(daemon, talking=1)
    assert len(daemon.lines("sighup-ignored")) == (number == signal.SIGHUP)
    assert daemon.stop() == 0


def test_a_signal_at_any_moment_of_the_start_ends_it_with_status_0() -> None:
    """During imports and after; no traceback."""
    for delay_ms in range(0, 600, 40):
        process = subprocess.Popen(
            [sys.executable, "-m", "nullsmtpd", "relay", "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE
        )
        with process:
            wait_until_caught(process.pid)
            time.sleep(delay_ms / 1000)
            process.send_signal(signal.SIGTERM)
            _, written = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, f"after {delay_ms} ms: {written!r}"
            assert b"Traceback" not in written


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


def test_as_another_user_it_answers(start: Start, dns_server: NameServer, tmp_path: Path) -> None:
    """Privileges are dropped once the sockets are bound, also those in directories of root.

    What a query needs was imported before: where only root can read the interpreter, an IDN is still looked up.
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


def test_it_runs_in_one_thread(start: Start, dns_server: NameServer) -> None:
    """Where no other can be started, as in a container with a limit, DNS is asked all the same, over UDP and TCP."""
    require(sys.platform == "linux", "Linux's /proc")
    dns_server.faults["null.example"] = "truncated"
    daemon = relay(start, dns_server)
    with connect(daemon.address) as client:
        assert ask(client, "null.example", "plain.example") == [REFUSAL, NOT_FOUND]
    assert len(os.listdir(f"/proc/{daemon.pid}/task")) == 1


def test_clients_of_every_kind_at_once_leave_it_as_it_was(start: Start, dns_server: NameServer) -> None:
    """Mail servers beside senders of garbage and clients that leave early: right replies, no descriptor left over."""
    daemon = relay(start, dns_server)
    with connect(daemon.address) as client:
        ask(client, "null.example")
    daemon.wait_for(lambda: counted(daemon, talking=0), "no client")
    before = daemon.descriptors()
    wrong: list[object] = []

    def asks() -> None:
        for number in range(30):
            with connect(daemon.address) as client:
                if ask(client, "null.example", f"{number}.example", "x@null.example") != [REFUSAL, NOT_FOUND, REFUSAL]:
                    wrong.append(number)

    def sends_garbage() -> None:
        for number in range(30):
            with contextlib.suppress(OSError), connect(daemon.address) as client:
                client.sendall(os.urandom(5000))
                client.sendall(request(f"left{number}.example"))

    crowd = [threading.Thread(target=kind) for kind in (asks, sends_garbage) * 4]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert wrong == []
    daemon.wait_for(lambda: daemon.descriptors() <= before, "as few descriptors as before")
    stats = {name: int(value) for name, value in daemon.stats().items()}
    results = ("null_mx", "not_null_mx", "dns_failures", "not_domains", "excepted", "unknown_maps")
    assert stats["requests"] == sum(stats[result] for result in results)


def test_postfix_itself_reads_the_replies(start: Start, dns_server: NameServer, tmp_path: Path) -> None:
    """postmap(1) through socketmap_table(5), over both kinds of socket, and for both maps.

    Its exit status is the same for NOTFOUND and PERM, but for PERM it prints why.
    """
    require_tools("postmap")
    path = tmp_path / "relay"
    daemon = start("relay", "--resolver", dns_server.flag, "--listen", f"unix:{path}")
    host, port = daemon.address
    for place in (f"unix:{path}", f"inet:{host}:{port}"):
        for name, reply in (
            ("nullmx", "556 5.1.10 Domain does not accept mail\n"),
            ("nullmxsender", "550 5.7.27 Sender address has null MX\n"),
        ):
            table = f"socketmap:{place}:{name}"
            assert postmap("x@null.example", table) == (0, reply, "")
            assert postmap("x@plain.example", table) == postmap("postmaster", table) == (1, "", "")
    status, found, error = postmap("x@null.example", f"socketmap:unix:{path}:typo")
    assert (status, found) == (1, "")
    assert "unknown map; the maps are nullmx and nullmxsender" in error


def postmap(key: str, table: str) -> tuple[int, str, str]:
    """Look a key up; return the exit status, what was found, and what was printed about it."""
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
