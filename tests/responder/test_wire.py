"""What goes over the wire, as the client's kernel counts it (Linux: tcp(7), TCP_INFO)."""

import socket
import struct
import sys

import pytest
from support import LINE, Daemon, Start, connect, read_all, require

# include/uapi/linux/tcp.h, struct tcp_info: tcpi_segs_out and tcpi_segs_in, after tcpi_pacing_rate and three more u64.
SEGS = struct.Struct("=136xII")
DATA_SEGS_IN = struct.Struct("=152xI")  # tcpi_data_segs_in: only segments with octets in them


def segments_in(client: socket.socket) -> int:
    """Return how many segments the client has received, SYN-ACK included."""
    received: int = SEGS.unpack(client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SEGS.size))[1]
    return received


def data_segments_in(client: socket.socket) -> int:
    """Return how many segments with octets in them the client has received."""
    count: int = DATA_SEGS_IN.unpack(client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, DATA_SEGS_IN.size))[0]
    return count


@pytest.fixture(autouse=True)
def linux() -> None:
    require(sys.platform == "linux", "Linux's TCP_INFO")


@pytest.mark.parametrize("text", ["Host does not accept mail", "x" * 506])
def test_line_and_fin_are_one_segment(start: Start, text: str) -> None:
    """A client that waits its turn receives two segments, the SYN-ACK and the line with the FIN on it."""
    daemon = start("--text", text)
    for _ in range(200):
        with connect(daemon.address) as client:
            assert read_all(client) == b"521 " + text.encode() + b"\r\n"
            assert segments_in(client) == 2


def test_line_and_fin_are_one_segment_without_linger(start: Start) -> None:
    """--linger 0 closes at once, and still in one segment."""
    daemon = start("--linger", "0")
    for _ in range(200):
        with connect(daemon.address) as client:
            assert read_all(client) == LINE
            assert segments_in(client) == 2


def test_the_end_is_a_fin_and_no_reset(daemon: Daemon) -> None:
    """A client that has said QUIT too early can still write after the FIN without an error while it lingers."""
    with connect(daemon.address) as client:
        client.sendall(b"QUIT\r\n")
        assert read_all(client) == LINE
        for _ in range(3):
            client.sendall(b"NOOP\r\n")
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_each_reply_of_a_dialogue_is_one_segment(start: Start) -> None:
    """Greeting, EHLO reply with all its lines, 521 and 221: one segment each."""
    daemon = start("--mode", "mail", "--hostname", "mx.example.org")
    for _ in range(50):
        with connect(daemon.address) as client:
            for number, command in enumerate((b"", b"EHLO x\r\n", b"MAIL FROM:<>\r\n", b"QUIT\r\n"), 1):
                client.sendall(command)
                assert client.recv(4096).endswith(b"\r\n")
                assert data_segments_in(client) == number
            assert read_all(client) == b""


def test_replies_to_pipelined_commands_leave_together(start: Start) -> None:
    """Commands that arrive in one segment are answered in one segment."""
    daemon = start("--mode", "mail", "--hostname", "mx.example.org")
    with connect(daemon.address) as client:
        assert client.recv(4096).startswith(b"220 ")
        client.sendall(b"EHLO x\r\nMAIL FROM:<>\r\nRSET\r\nQUIT\r\n")
        assert read_all(client).count(b"\r\n") == 7
        assert data_segments_in(client) == 2
