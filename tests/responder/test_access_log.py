"""The access log: what a line tells, that nothing a client sends gets into it, and that a flood cannot fill a disk."""

import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from activation import command_with, daemon_on
from faults import stopped
from support import LINE, MODES, PATIENCE, Daemon, Start, connect, read_all, require, run_clients

from nullsmtpd.responder.access_log import MAX_LINES
from nullsmtpd.runtime.sockets import format_sockaddr


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
def test_a_line_has_both_addresses_the_mode_and_whether_the_client_spoke_first(
    start: Start, mode: str, listen: str
) -> None:
    """In every mode and family: a client that waits for the greeting, and an early talker."""
    daemon = start("--access-log", "--mode", mode, listen=listen)
    with connect(daemon.address) as waiting:
        assert waiting.recv(4)
        peer, local = shown(waiting.getsockname()), shown(daemon.address)
    assert the_line(daemon) == f"peer={peer} local={local} mode={mode} spoke_first=no"
    with stopped(daemon):
        early = connect(daemon.address)
        early.sendall(b"QUIT\r\n")
    with early:
        assert b"21 " in read_all(early)
        assert the_line(daemon, 1) == f"peer={shown(early.getsockname())} local={local} mode={mode} spoke_first=yes"


def test_detecting_an_early_talker_consumes_none_of_its_input(start: Start) -> None:
    """The dialogue gets every octet that came before the greeting."""
    daemon = start("--access-log", "--mode", "mail", "--hostname", "mx.example.org")
    with stopped(daemon):
        client = connect(daemon.address)
        client.sendall(b"NOOP\r\nQUIT\r\n")
    with client:
        assert read_all(client).splitlines()[1:] == [b"250 2.0.0 OK", b"221 2.0.0 mx.example.org closing connection"]


def test_without_the_option_there_is_no_line(daemon: Daemon) -> None:
    """The default is no access log."""
    for _ in range(3):
        with connect(daemon.address) as client:
            assert read_all(client) == LINE
    assert daemon.stop() == 0
    assert daemon.lines("connection") == []


def test_clients_that_find_all_sessions_taken_are_logged_too(start: Start) -> None:
    """Beyond --max-sessions the reply is another one; each connection has one line."""
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
    """A scanner that connects and resets is logged, though the kernel forgets the peer of a reset socket."""
    daemon = start("--access-log")
    peers = []
    with stopped(daemon):
        for sent in (b"", b"EHLO scanner.example\r\n"):
            client = connect(daemon.address)
            peers.append(shown(client.getsockname()))
            client.sendall(sent)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
    assert the_line(daemon, 0).startswith(f"peer={peers[0]} local=")
    assert the_line(daemon, 1).startswith(f"peer={peers[1]} local=")
    assert the_line(daemon, 0).endswith("spoke_first=no")


def test_nothing_that_a_client_sends_gets_into_the_log(start: Start) -> None:
    """Not even what resembles a log line (RFC 7504 §7: content is not interpreted)."""
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


def test_a_link_local_address_has_its_interface_by_name() -> None:
    """RFC 4007 §11; an operator knows eth0, and not its number."""
    require(sys.platform == "linux", "an interface lo with the index 1")
    assert format_sockaddr(("fe80::1", 40000, 0, 1)) == "[fe80::1%lo]:40000"


def test_a_flood_leaves_a_bounded_log_and_a_count_of_the_rest(start: Start) -> None:
    """Every connection is a line or is counted as suppressed."""
    daemon = start("--access-log")
    crowd = MAX_LINES + 1000
    assert run_clients(daemon.address, "waits_for_the_line", crowd, 200) == {"whole line": crowd}
    stats = daemon.stats()
    assert len(daemon.lines("connection")) == MAX_LINES
    assert stats["access_suppressed"] == "1000"
    assert stats["connections"] == str(crowd)


def test_instances_share_a_log_and_no_line_is_torn(tmp_path: Path) -> None:
    """Two processes write to one file at the same time: each line is whole."""
    whole = r"\S+Z connection peer=127\.0\.0\.1:\d+ local=\S+ mode=close spoke_first=(yes|no)"
    crowd = MAX_LINES  # of which one alone may write all
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        log_path = tmp_path / "log"
        with log_path.open("ab") as log:
            processes = [
                subprocess.Popen([*command_with(listener), "--access-log"], stderr=log, pass_fds=[listener.fileno()])
                for _ in range(2)
            ]
        try:
            outcomes = run_clients(listener.getsockname()[:2], "sends_quit_first", crowd, 200)
        finally:
            for process in processes:
                process.terminate()
            statuses = [process.wait(PATIENCE) for process in processes]
    assert (outcomes, statuses) == ({"whole line": crowd}, [0, 0])
    lines = log_path.read_text().splitlines()
    assert len({line.split()[2] for line in lines if re.fullmatch(whole, line)}) == crowd
    assert sum("peer=" in line for line in lines) == crowd


@pytest.mark.parametrize("mode", MODES)
def test_a_log_that_nobody_reads_costs_lines_and_no_client(mode: str) -> None:
    """Stderr is a full pipe: clients are answered, and the lines that were lost are counted."""
    connections = 900  # 110 octets each: more than a pipe holds, and within the limit of lines
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
                assert process.wait(PATIENCE) == 0
            finally:
                process.kill()
    suppressed = re.search(rb" access_suppressed=(\d+)", log)
    assert suppressed
    assert int(suppressed[1]) > 0
    assert log.count(b" connection peer=") + int(suppressed[1]) == connections
