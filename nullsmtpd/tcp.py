"""What is asked of the kernel's TCP beyond the portable socket calls, each with its plain substitute elsewhere.

Linux: tcp(7), socket(7), include/uapi/linux/tcp.h. Everywhere else the substitutes answer the same questions more
slowly or less exactly; nothing depends on them for being right.
"""

import array
import socket
import struct
import sys
from socket import SocketType

__all__ = ["cork_replies", "is_finished", "refuse_handshakes", "waiting"]

# struct tcp_info. For a listening socket tcpi_unacked is the length of its accept queue (net/ipv4/tcp.c, tcp_get_info).
_TCPI_UNACKED = struct.Struct("=24xI")
# tcpi_state is its first octet. TCP_CLOSE on a socket that we half-closed: the client's FIN, or its RST, has come.
_TCP_CLOSE = b"\x07"
_IPPROTO_TCP = int(socket.IPPROTO_TCP)
_TCP_INFO = 11

# linux/filter.h: the classic BPF program "a SYN without ACK is dropped, anything else passes", run on the TCP header.
_NO_NEW_SYN = (
    (0x30, 0, 0, 13),  # A = the octet of flags
    (0x54, 0, 0, 0x12),  # A &= SYN|ACK
    (0x15, 0, 1, 0x02),  # A == SYN ?
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # pass
)
_SO_ATTACH_FILTER = 26


def cork_replies(listener: socket.socket, *, on: bool = True) -> None:
    """Make a send and the shutdown after it leave as one segment on every connection that this listener accepts.

    TCP_CORK is inherited; shutdown() pushes the corked octets with the FIN on them. One packet less each way. Not for a
    dialogue: a corked socket holds any further reply back for 200 ms.
    """
    if sys.platform == "linux":
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, on)


def waiting(listener: socket.socket, otherwise: int) -> int:
    """Return how many connections wait to be accepted, or ``otherwise`` where the kernel does not tell.

    One cheap call instead of a last accept() that fails: that one costs a file, a descriptor and an exception.
    """
    if sys.platform != "linux":
        return otherwise
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCPI_UNACKED.size)
    count: int = _TCPI_UNACKED.unpack(info)[0]
    return count


def _is_closed(connection: SocketType) -> bool:
    """Tell whether the client of a half-closed connection has closed its side too, or reset it."""
    return connection.getsockopt(_IPPROTO_TCP, _TCP_INFO, 1) == _TCP_CLOSE


def _has_ended(connection: SocketType) -> bool:
    """Tell the same where TCP_INFO is missing: whether the client's end of input can be read."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


#: Chosen once: it is asked for every connection.
is_finished = _is_closed if sys.platform == "linux" else _has_ended


def refuse_handshakes(listener: socket.socket) -> None:
    """Let no new connection begin on this listener, while those under way still complete.

    Closing a listening socket resets what waits in its queue, and between the last accept() and the close() there is
    always time for one more. With the SYNs dropped first the queue runs dry for good; their senders try again within
    a second and find the port closed.
    """
    if sys.platform != "linux":
        return
    program = array.array("B", b"".join(struct.pack("=HBBI", *instruction) for instruction in _NO_NEW_SYN))
    address, _ = program.buffer_info()
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_NO_NEW_SYN), address))
