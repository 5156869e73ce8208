"""What goes over the wire, as the client's kernel counts it (Linux: tcp(7), TCP_INFO)."""

import socket
import struct
import sys

import pytest
from support import LINE, Daemon, Start, connect, read_all, require

# include/uapi/linux/tcp.h, struct tcp_info: tcpi_segs_out and tcpi_segs_in, after tcpi_pacing_rate and three more u64.
SEGS = struct.Struct("=136xII")


def segments_in(client: socket.socket) -> int:
    """Return how many segments the client has received, SYN-ACK included."""
    received: int = SEGS.unpack(client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SEGS.size))[1]
    return received


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
