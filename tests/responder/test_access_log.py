"""The access log: what a line says, that a client writes nothing of it, and that a flood cannot fill a disk with it."""

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import SocketType
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import LINE, Daemon, Start, connect, read_all, require
from test_clients import run_clients
from test_linger import Clock
from test_systemd_protocol import command_with, daemon_on

from nullsmtpd.responder.access_log import BURST_LINES, LEFT_OUT_EVERY, LINES_PER_SECOND, AccessLog
from nullsmtpd.responder.counters import Counters
from nullsmtpd.runtime.sockets import shown_address

if TYPE_CHECKING:
    import asyncio

MODES = ["close", "session", "mail"]


def the_line(daemon: Daemon, number: int = 0) -> str:
    """Return the text of an access line, after its time and event."""
    daemon.wait_for(lambda: len(daemon.lines("connection")) > number, "an access line")
    stamp, event, fields = daemon.lines("connection")[number].split(" ", 2)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", stamp)
    assert event == "connection"
    return fields


def shown(address: tuple[str, int]) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0"])
@pytest.mark.parametrize("mode", MODES)
def test_a_line_has_both_addresses_the_mode_and_who_spoke_first(start: Start, mode: str, listen: str) -> None:
    """In every mode and family: a client that waits for its turn, and one that does not."""
    daemon = start("--access-log", "--mode", mode, listen=listen)
    with connect(daemon.address) as polite:
        assert polite.recv(4)
        peer, local = shown(polite.getsockname()), shown(daemon.address)
    assert the_line(daemon) == f"peer={peer} local={local} mode={mode} spoke_first=no"
    with stopped(daemon):
        hasty = connect(daemon.address)
        hasty.sendall(b"QUIT\r\n")
    with hasty:
        assert b"21 " in read_all(hasty)
        assert the_line(daemon, 1) == f"peer={shown(hasty.getsockname())} local={local} mode={mode} spoke_first=yes"


def test_looking_whether_a_client_spoke_takes_nothing_of_what_it_said(start: Start) -> None:
    """The dialogue hears every octet that came before the greeting."""
    daemon = start("--access-log", "--mode", "mail", "--hostname", "mx.example.org")
    with stopped(daemon):
        client = connect(daemon.address)
        client.sendall(b"NOOP\r\nQUIT\r\n")
    with client:
        assert read_all(client).splitlines()[1:] == [b"250 2.0.0 OK", b"221 2.0.0 mx.example.org closing connection"]


def test_without_the_option_there_is_no_line(daemon: Daemon) -> None:
    """An access log is what an operator has asked for."""
    for _ in range(3):
        with connect(daemon.address) as client:
            assert read_all(client) == LINE
    assert daemon.stop() == 0
    assert daemon.lines("connection") == []


def test_clients_that_find_all_sessions_taken_are_logged_too(start: Start) -> None:
    """Past --max-sessions the answer is another, the line is not; each connection has one line and no more."""
    daemon = start("--access-log", "--mode", "mail", "--max-sessions", "1")
    with connect(daemon.address) as first, connect(daemon.address) as second:
        assert first.recv(4) == b"220 "
        assert read_all(second) == LINE
        assert [the_line(daemon, n).split()[0] for n in range(2)] == [
            f"peer={shown(client.getsockname())}" for client in (first, second)
        ]
    daemon.stop()
    assert len(daemon.lines("connection")) == 2


def test_a_client_that_has_reset_while_it_waited_has_its_address_in_the_log(start: Start) -> None:
    """A scanner that connects and resets is seen, though the kernel forgets whom a reset socket was connected to."""
    daemon = start("--access-log")
    peers = []
    with stopped(daemon):
        for said in (b"", b"EHLO scanner.example\r\n"):
            client = connect(daemon.address)
            peers.append(shown(client.getsockname()))
            client.sendall(said)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
    assert the_line(daemon, 0).startswith(f"peer={peers[0]} local=")
    assert the_line(daemon, 1).startswith(f"peer={peers[1]} local=")
    assert the_line(daemon, 0).endswith("spoke_first=no")


def test_nothing_that_a_client_says_gets_into_the_log(start: Start) -> None:
    """Not even what looks like a line of ours (RFC 7504 §7: content is not looked at)."""
    daemon = start("--access-log", "--mode", "session")
    forged = b"2026-11-23T20:00:00.000Z connection peer=192.0.2.66:1 local=192.0.2.1:25 mode=close spoke_first=yes\r\n"
    for hostile in (forged, b"\r\n" + forged, b"EHLO " + forged, b"\x00\x1b[2J" + forged):
        with connect(daemon.address) as client:
            client.sendall(hostile + b"QUIT\r\n")
            read_all(client)
    assert daemon.stop() == 0
    assert len(daemon.lines("connection")) == 4
    assert "192.0.2.66" not in daemon.log


def test_an_ipv4_client_of_an_ipv6_socket_is_shown_as_ipv4(tmp_path: Path) -> None:
    """A service manager's socket may be for both families; who bans by this log bans an IPv4 address."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both:
        port = both.getsockname()[1]
        with daemon_on(tmp_path, both, arguments=("--access-log",)) as daemon:
            with connect(("127.0.0.1", port)) as client:
                assert read_all(client) == LINE
                peer = client.getsockname()
            assert the_line(daemon).startswith(f"peer={shown(peer)} local=127.0.0.1:{port} ")


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("192.0.2.1", 40000), "192.0.2.1:40000"),
        (("2001:db8::1", 25, 0, 0), "[2001:db8::1]:25"),
        (("::ffff:192.0.2.1", 40000, 0, 0), "192.0.2.1:40000"),
        (("::ffff:0:c000:201", 40000, 0, 0), "[::ffff:0:c000:201]:40000"),  # RFC 2765 §2.1: translated, not mapped
        (("64:ff9b::192.0.2.1", 40000, 0, 0), "[64:ff9b::192.0.2.1]:40000"),
        (("fe80::1", 40000, 0, 1), "[fe80::1%lo]:40000"),
        (("fe80::1", 40000, 0, 2**31 - 1), "[fe80::1%2147483647]:40000"),
    ],
)
def test_addresses_are_written_as_operators_write_them(address: tuple[str, int], text: str) -> None:
    """Brackets around IPv6, the interface of a link-local address, IPv4-mapped addresses as IPv4."""
    require(sys.platform == "linux", "an interface lo with the index 1")
    assert shown_address(address) == text


def test_a_flood_leaves_a_bounded_log_and_a_count_of_the_rest(start: Start) -> None:
    """Every connection is either a line or counted, and a line says how many were left out."""
    daemon = start("--access-log")
    crowd = BURST_LINES + 1000
    assert run_clients(daemon.address, "waits_for_the_line", crowd, 200) == {"whole line": crowd}
    daemon.wait_for(lambda: daemon.lines("access-left-out"), "a line about what was left out")
    stats = daemon.stats()
    assert len(daemon.lines("connection")) + int(stats["access_left_out"]) == int(stats["connections"]) == crowd
    assert int(stats["access_left_out"]) > 0
    daemon.wait_for(lambda: said_to_be_left_out(daemon) == int(stats["access_left_out"]), "the sum of those lines")
    assert daemon.wake_ups_within(1.5) <= 1


def test_workers_share_the_log_and_no_line_is_torn(start: Start) -> None:
    """Two processes write at the same time: each line is whole, and lines and what was left out are all there is."""
    daemon = start("--access-log", "--workers", "2")
    crowd = BURST_LINES + 2000
    assert run_clients(daemon.address, "sends_quit_first", crowd, 200) == {"whole line": crowd}
    daemon.wait_for(lambda: logged_or_counted(daemon) == crowd, "a line or a count for each")
    whole = r"\S+Z connection peer=127\.0\.0\.1:\d+ local=\S+ mode=close spoke_first=(yes|no)"
    assert all(re.fullmatch(whole, line) for line in daemon.log.splitlines() if "peer=" in line)
    assert int(daemon.stats()["connections"]) == crowd


def logged_or_counted(daemon: Daemon) -> int:
    return len(daemon.lines("connection")) + int(daemon.stats()["access_left_out"])


def said_to_be_left_out(daemon: Daemon) -> int:
    return sum(int(line.rpartition("count=")[2]) for line in daemon.lines("access-left-out"))


@pytest.mark.parametrize("mode", MODES)
def test_a_log_that_nobody_reads_costs_lines_and_no_client(mode: str) -> None:
    """Stderr is a full pipe: clients are answered, and the lines that were lost are counted."""
    connections = 900  # 110 octets each: more than a pipe holds, and within the budget of lines
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [*command_with(listener), "--access-log", "--mode", mode]
        with subprocess.Popen(command, stderr=subprocess.PIPE, pass_fds=[listener.fileno()]) as process:
            try:
                for _ in range(connections):
                    with connect(listener.getsockname()) as client:
                        assert client.recv(4)
                assert process.stderr
                log = os.read(process.stderr.fileno(), 1 << 16)  # the pipe has room again
                process.terminate()
                log += process.stderr.read()
                assert process.wait(20) == 0
            finally:
                process.kill()
    left_out = re.search(rb" access_left_out=(\d+)", log)
    assert left_out
    assert int(left_out[1]) > 0
    assert log.count(b" connection peer=") + int(left_out[1]) == connections


class Bench:
    """An access log with a clock of the test's own, and a responder that answers whatever it is given."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.counters = Counters()
        log = AccessLog(cast("asyncio.AbstractEventLoop", self.clock), self.counters, "close")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self._client = socket.create_connection(self.listener.getsockname())
        accepted, peer = self.listener.accept()
        descriptor = accepted.detach()
        self._connection = SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)
        self._accept = log.noting(lambda: (descriptor, peer))
        self.answered = 0
        self._answer: Callable[[list[SocketType]], None] = log.around(self._count)

    def _count(self, batch: list[SocketType]) -> None:
        self.answered += len(batch)

    def serve(self, count: int) -> None:
        """Answer one batch of so many connections."""
        self._accept()
        self._answer([self._connection] * count)

    def close(self) -> None:
        for one in (self._connection, self._client, self.listener):
            one.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def test_the_budget_is_a_burst_and_then_so_many_a_second(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    """By the clock: after a burst nothing, a tenth of a second later a tenth of a second's lines."""
    bench.serve(BURST_LINES)
    assert capfd.readouterr().err.count(" connection ") == BURST_LINES
    bench.serve(7)
    assert capfd.readouterr().err == ""
    bench.clock.now += 0.1
    bench.serve(LINES_PER_SECOND)
    assert capfd.readouterr().err.count(" connection ") == LINES_PER_SECOND // 10
    assert bench.counters.access_left_out == 7 + LINES_PER_SECOND - LINES_PER_SECOND // 10
    assert bench.answered == BURST_LINES + 7 + LINES_PER_SECOND


@given(st.lists(st.tuples(st.floats(0, 3600), st.integers(1, 3 * BURST_LINES)), max_size=30))
def test_no_history_gets_more_lines_than_the_budget(history: list[tuple[float, int]]) -> None:
    """Invariant: at most the burst and the rate's share of the time; a budget that has not run out leaves none out."""
    clock = Clock()
    log = AccessLog(cast("asyncio.AbstractEventLoop", clock), Counters(), "close")
    lines = 0
    for pause, wanted in history:
        clock.now += pause
        budget = BURST_LINES if pause * LINES_PER_SECOND >= BURST_LINES else 0
        allowed = log._allowed(wanted)
        assert min(wanted, budget) <= allowed <= min(wanted, BURST_LINES)
        lines += allowed
        assert lines <= BURST_LINES + LINES_PER_SECOND * clock.now + 1e-6


def test_what_was_left_out_is_said_once_a_second_and_then_no_more(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line for all that was left out in a second, and no timer once that is said."""
    bench.serve(BURST_LINES)
    assert bench.clock.timers == []
    for _ in range(5):
        bench.serve(100)
        bench.clock.advance(LEFT_OUT_EVERY / 10)
    left_out = bench.counters.access_left_out
    assert "access-left-out" not in capfd.readouterr().err
    bench.clock.advance(LEFT_OUT_EVERY)
    assert f" access-left-out count={left_out}\n" in capfd.readouterr().err
    assert bench.clock.timers == []
