"""TCP beyond the portable socket calls: tcp(7), socket(7), include/uapi/linux/tcp.h.

Elsewhere than on Linux the length of the accept queue is unknown, and whether a client has closed is found by reading.
"""

import socket
import struct
import sys
from socket import SocketType

__all__ = ["accept_queue_len", "peer_has_closed", "reset_options"]

# struct tcp_info. For a listening socket tcpi_unacked is the length of its accept queue (net/ipv4/tcp.c, tcp_get_info).
_TCPI_UNACKED = struct.Struct("=24xI")
# tcpi_state is its first octet. TCP_CLOSE on a socket that was half-closed here: the client's FIN or RST has arrived.
_TCP_CLOSE = b"\x07"
_IPPROTO_TCP, _TCP_INFO = socket.IPPROTO_TCP, 11  # global variables, as one of these calls is made per connection


def reset_options(listener: socket.socket) -> None:
    """Reset what another program may have set on a listening TCP socket and accepted sockets would inherit.

    TCP_DEFER_ACCEPT would keep silent clients from being answered, SO_LINGER could turn the FIN into a RST, SO_RCVLOWAT
    delay the reading of short commands, and TCP_CORK the replies of a dialogue.
    """
    if sys.platform == "linux":
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


def accept_queue_len(listener: socket.socket, default: int) -> int:
    """Return how many connections can be accepted, or ``default`` where the kernel does not tell.

    So a batch need not end with an accept() that fails, which costs a file, a descriptor and an exception.
    """
    if sys.platform != "linux":
        return default
    info = listener.getsockopt(_IPPROTO_TCP, _TCP_INFO, _TCPI_UNACKED.size)
    if len(info) < _TCPI_UNACKED.size:  # an emulated kernel
        return default
    length: int = _TCPI_UNACKED.unpack(info)[0]
    return length


def _has_closed_by_state(connection: SocketType) -> bool:
    """Return whether the client of a half-closed connection has closed its side too, or reset it."""
    return connection.getsockopt(_IPPROTO_TCP, _TCP_INFO, 1) == _TCP_CLOSE


def _has_closed_by_input(connection: SocketType) -> bool:
    """Return the same where TCP_INFO is missing: whether the end of the client's input can be read."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


#: Chosen once, as it is called for every connection.
peer_has_closed = _has_closed_by_state if sys.platform == "linux" else _has_closed_by_input
