"""A signal at any moment ends the process as asked, and no client that the kernel had let in goes without its line."""

import contextlib
import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from faults import stopped
from hosts import SERVER_4, Host, connected_hosts
from slow_link import distant_hosts
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
)

from nullsmtpd.responder.linger import FIRST_SWEEP, SWEEP_INTERVAL

COMMAND = [sys.executable, "-m", "nullsmtpd", "--listen", "127.0.0.1:0"]


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 5), (signal.SIGINT, 10)])
def test_a_signal_at_any_moment_of_the_start_ends_it_with_status_0(number: signal.Signals, step: int) -> None:
    """From the installation of the handlers on, through all imports and into the serving, each delay is tried."""
    for delay_ms in range(0, 200, step):
        process = subprocess.Popen(COMMAND, stderr=subprocess.PIPE)
        try:
            wait_until_caught(process.pid, number)
            time.sleep(delay_ms / 1000)
            process.send_signal(number)
            assert process.wait(PATIENCE) == 0, f"after {delay_ms} ms: {process.communicate()[1]!r}"
            assert b"Traceback" not in process.communicate()[1]
        finally:
            end(process)


def wait_until_caught(pid: int, number: signal.Signals) -> None:
    """Wait until a process has a handler of ours for the signal; the interpreter itself has one for SIGINT."""
    require(sys.platform == "linux", "Linux's /proc")
    wanted = (1 << signal.SIGTERM - 1) | (1 << number - 1)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/status") as status:  # noqa: PTH123 - polled as fast as it can be
            caught = int(next(line for line in status if line.startswith("SigCgt:")).split()[1], 16)
        if caught & wanted == wanted:
            return
    pytest.fail("no handler was ever installed")


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe:
            pipe.close()


def test_handlers_are_there_before_anything_slow_is_imported() -> None:
    """When the handlers are installed, neither asyncio nor uvloop nor the signal module's enumerations are loaded."""
    code = (
        "import sys, _signal; real = _signal.signal; seen = []\n"
        "def spy(*args):\n    seen.append(set(sys.modules)); return real(*args)\n"
        "_signal.signal = spy; before = set(sys.modules)\n"
        "import nullsmtpd.__main__\n"
        "print(sorted(seen[0] - before))"
    )
    result = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False, timeout=60)
    if "No module named 'nullsmtpd'" in result.stderr:  # installed where only site finds it
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(eval(result.stdout))  # noqa: S307 - our own output
    assert not loaded & {
        "asyncio",
        "typing",
        "signal",
        "enum",
        "re",
        "uvloop",
        "uvloop.loop",
        "ssl",
        "nullsmtpd.responder.server",
        "nullsmtpd.cli.responder",
    }


def test_as_process_1_the_signals_work_too() -> None:
    """The kernel drops a signal to process 1 that has no handler; ours is there from our first line on."""
    require_root()
    require_tools("unshare")
    for delay_ms in range(0, 160, 20):
        # --kill-child: no process is left if the test fails. The command is process 1 of the namespace.
        process = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *COMMAND], stderr=subprocess.PIPE
        )
        try:
            unshare = Daemon(process, Path(os.devnull))
            unshare.wait_for(unshare.children, "process 1")
            child = unshare.children()[0]
            wait_until_caught(child, signal.SIGTERM)
            time.sleep(delay_ms / 1000)
            os.kill(child, signal.SIGTERM)
            assert process.wait(PATIENCE) == 0, f"after {delay_ms} ms"
        finally:
            end(process)


def test_sigterm_under_load_loses_no_connection_that_was_completed(start: Start) -> None:
    """Clients connect as fast as they can while the signal comes: each that got a connection gets the line."""
    for _ in range(10):
        daemon = start()
        address = daemon.address
        outcomes: list[bytes | str] = []
        crowd = [threading.Thread(target=hammer, args=(address, outcomes)) for _ in range(16)]
        for thread in crowd:
            thread.start()
        daemon.wait_for(lambda seen=outcomes: len(seen) > 200, "some load")  # type: ignore[misc]
        time.sleep(random.random() / 50)
        assert daemon.stop() == 0
        for thread in crowd:
            thread.join()
        assert set(outcomes) == {LINE, "refused"}, {outcome: outcomes.count(outcome) for outcome in set(outcomes)}
        assert outcomes.count("refused") == 16


def hammer(address: tuple[str, int], outcomes: list[bytes | str]) -> None:
    """Connect and read, again and again, until the port is closed."""
    for _ in range(100_000):
        try:
            connection = connect(address)
        except (ConnectionRefusedError, ConnectionResetError):  # reset: our SYN was waiting when the port closed
            outcomes.append("refused")
            return
        with connection:
            try:
                outcomes.append(read_all(connection))
            except OSError as error:
                outcomes.append(type(error).__name__)


def test_what_waits_in_the_backlog_at_sigterm_gets_the_line(start: Start) -> None:
    """A stopped process has thousands waiting; told to end, it answers them all first."""
    daemon = start()
    daemon.process.send_signal(signal.SIGSTOP)
    clients = [connect(daemon.address) for _ in range(1000)]
    try:
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGCONT)
        assert [read_all(client) for client in clients] == [LINE] * len(clients)
    finally:
        for client in clients:
            client.close()
    assert daemon.process.wait(PATIENCE) == 0


@pytest.mark.parametrize(("syncookies", "outcome"), [("1", ascii(LINE)), ("2", "ConnectionResetError")])
def test_a_handshake_in_progress_at_sigterm_is_waited_for(start: Start, syncookies: str, outcome: str) -> None:
    """A client is connected before its last ACK is here: it gets the line, although the port is closed.

    Not with SYN cookies in use (tcp_syncookies=2: always, 1: when the queue of handshakes is full): then the kernel
    knows no handshake in progress, and a client whose last ACK takes longer than `COOKIE_GRACE` is reset.
    """
    require_root()
    require_tools("nft", "unshare", "nsenter", "ip")
    with connected_hosts() as (server, client):
        server.run("sh", "-c", f"echo {syncookies} > /proc/sys/net/ipv4/tcp_syncookies")
        daemon = start(prefix=server.prefix, listen=f"{SERVER_4}:25")
        client.run("nft", "-f", "-", stdin=NO_LAST_ACK)
        with subprocess.Popen(
            [*client.prefix, sys.executable, "-c", SLOW_CLIENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin
            assert process.stdout
            assert process.stdout.readline() == b"connected\n"
            daemon.process.send_signal(signal.SIGTERM)
            daemon.wait_for(lambda: server.run(sys.executable, "-c", TRY) == "refused\n", "a closed port")
            if syncookies == "2":
                daemon.process.wait(PATIENCE)
            assert process.communicate(b"speak\n", PATIENCE)[0].decode().rstrip() == outcome
        assert daemon.process.wait(PATIENCE) == 0


def handshakes(server: Host, syncookies: str) -> int:
    """Return how many SYNs a host has answered: those with a cookie, or those of connections and of handshakes."""
    names, values = (line.split() for line in server.run("cat", "/proc/net/netstat").splitlines()[:2])
    if syncookies == "2":
        return int(values[names.index("SyncookiesSent")])
    names, values = (line.split() for line in server.run("grep", "Tcp:", "/proc/net/snmp").splitlines())
    in_progress = server.run("cat", "/proc/net/tcp").count(" 03 ")
    return int(values[names.index("PassiveOpens")]) + in_progress


@pytest.mark.parametrize(("delay", "syncookies"), [(0.3, "1"), (0.1, "2")])
def test_clients_far_away_get_the_line_or_are_refused(start: Start, delay: float, syncookies: str) -> None:
    """No client that is connected at SIGTERM is reset, with a round trip of 600 ms, twice around the Earth.

    With SYN cookies in use that is true of round trips shorter than `COOKIE_GRACE`.
    """
    with distant_hosts(delay) as (server, client):
        server.run("sh", "-c", f"echo {syncookies} > /proc/sys/net/ipv4/tcp_syncookies")
        daemon = start(prefix=server.prefix, listen=f"{SERVER_4}:25")
        command = [*client.prefix, *CLIENTS, SERVER_4, "25", "sends_quit_first", "400", "100", str(PATIENCE)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as clients:
            daemon.wait_for(lambda: handshakes(server, syncookies) > 150, "the second hundred's last ACKs on their way")
            assert daemon.stop() == 0
            outcomes = json.loads(clients.communicate(timeout=3 * PATIENCE)[0])
    assert set(outcomes) == {"whole line", "refused"}
    assert sum(outcomes.values()) == 400
    assert outcomes["whole line"] > 150


# What has no octets in it and ends nothing.
NO_LAST_ACK = """
table inet far {
    chain output {
        type filter hook output priority 0
        tcp dport 25 tcp flags & (syn | ack | psh | fin | rst) == ack drop
    }
}
"""
SLOW_CLIENT = f"""
import socket
client = socket.create_connection(("{SERVER_4}", 25), 20)
print("connected", flush=True)
input()
try:
    client.sendall(b"QUIT\\r\\n")
    print(ascii(b"".join(iter(lambda: client.recv(4096), b""))))
except OSError as error:
    print(type(error).__name__)
"""
TRY = f"""
import socket
try:
    socket.create_connection(("{SERVER_4}", 25), 20).close()
except ConnectionRefusedError:
    print("refused")
"""


def test_lingering_clients_get_the_linger_time_at_the_end_and_no_more(start: Start) -> None:
    """A client that stays open does not hold the process up for longer than it may linger, and is not reset."""
    daemon = start("--linger", "1")
    with connect(daemon.address) as client:
        client.sendall(b"EHLO client.example\r\n")
        daemon.wait_for(lambda: daemon.stats()["lingering"] == "1", "a lingering client")
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 4  # 1 s of linger, and room for a busy machine
        assert read_all(client) == LINE


@pytest.mark.parametrize("mode", MODES)
def test_it_ends_as_soon_as_the_last_client_has_closed(start: Start, mode: str) -> None:
    """However long clients may linger, and not before one that is still there has read and closed."""
    daemon = start("--mode", mode, "--linger", "3600")
    with connect(daemon.address) as client:
        assert client.recv(4)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for(lambda: is_refused(daemon.address), "a closed port")
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.process.wait(FIRST_SWEEP + 2 * SWEEP_INTERVAL)  # by then sweeps leave the client to its deadline
        read_all(client)
    assert daemon.process.wait(PATIENCE) == 0


def test_at_the_end_clients_that_stay_make_room_for_those_that_wait(start: Start) -> None:
    """With room for four, hundreds in the accept queue get the line before the process stops to wait for handshakes."""
    daemon = start("--max-lingering", "4", "--linger", "60")
    with contextlib.ExitStack() as stack:
        with stopped(daemon):
            clients = [stack.enter_context(connect(daemon.address)) for _ in range(400)]
            daemon.process.send_signal(signal.SIGTERM)
        assert {read_all(client) for client in clients} == {LINE}
    assert daemon.process.wait(PATIENCE) == 0


def is_refused(address: tuple[str, int]) -> bool:
    """Return whether nothing listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(address) == errno.ECONNREFUSED


def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    """With a client that would linger for an hour, the second SIGTERM does not wait; status 0, counters logged."""
    daemon = start("--linger", "3600")
    with connect(daemon.address):
        daemon.wait_for(lambda: daemon.stats()["lingering"] == "1", "a lingering client")
        daemon.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.process.wait(0.3)
        before = len(daemon.lines("stats"))
        assert daemon.stop() == 0
        assert len(daemon.lines("stats")) == before + 1


def test_signals_without_end_do_not_change_the_status(start: Start) -> None:
    """A supervisor that sends SIGTERM again and again still sees status 0."""
    for _ in range(5):
        daemon = start()
        deadline = time.monotonic() + PATIENCE
        while daemon.process.poll() is None and time.monotonic() < deadline:
            daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.returncode == 0


def test_no_new_client_is_let_in_while_it_ends(start: Start) -> None:
    """After SIGTERM the port is closed though a client lingers on."""
    daemon = start("--linger", "3600")
    with connect(daemon.address):
        daemon.wait_for(lambda: daemon.stats()["lingering"] == "1", "a lingering client")
        daemon.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        refused = False
        while not refused and time.monotonic() < deadline:
            with socket.socket() as late:
                late.settimeout(0.1)
                refused = late.connect_ex(daemon.address) == 111
        assert refused
