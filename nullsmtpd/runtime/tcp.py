"""What is asked of the kernel's TCP beyond the portable socket calls, each with its plain substitute elsewhere.

Linux: tcp(7), socket(7), include/uapi/linux/tcp.h. Everywhere else the substitutes answer the same questions more
slowly or less exactly; nothing depends on them for being right.
"""

import contextlib
import socket
import struct
import sys
from socket import SocketType

__all__ = ["cork_replies", "is_finished", "refuse_handshakes", "stop_listening", "waiting"]

# struct tcp_info. For a listening socket tcpi_unacked is the length of its accept queue (net/ipv4/tcp.c, tcp_get_info).
_TCPI_UNACKED = struct.Struct("=24xI")
# tcpi_state is its first octet. TCP_CLOSE on a socket that we half-closed: the client's FIN, or its RST, has come.
_TCP_CLOSE = b"\x07"
_IPPROTO_TCP = int(socket.IPPROTO_TCP)
_TCP_INFO = 11

# asm-generic/socket.h, since Linux 5.1; and the index of a network interface that no host has.
_SO_BINDTOIFINDEX = 62
_NO_INTERFACE = 2**31 - 1


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
    if len(info) < _TCPI_UNACKED.size:  # an emulated kernel
        return otherwise
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
    always time for one more. Bound to an interface that does not exist, the listener is found by no SYN any more, which
    is answered as for a closed port; a handshake that has begun belongs to it already, and the queue runs dry for good.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # an older kernel: that moment remains
            listener.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, _NO_INTERFACE)


def stop_listening(listener: socket.socket) -> None:
    """Close the port for good, though other processes may have a copy of the socket: close() would leave it to them."""
    with contextlib.suppress(OSError):  # not Linux: ENOTCONN, and close() has to do
        listener.shutdown(socket.SHUT_RDWR)
