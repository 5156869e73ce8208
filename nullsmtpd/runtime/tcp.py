"""TCP beyond the portable socket calls: tcp(7), socket(7), include/uapi/linux/tcp.h.

Elsewhere than on Linux each function has a plain substitute, which is slower or less exact; nothing depends on it.
"""

import contextlib
import socket
import struct
import sys
from array import array
from socket import SocketType

__all__ = ["accept_queue_len", "cork", "drop_syns", "has_sent_syn_cookies", "is_finished", "pending_handshakes"]
__all__ += ["refuse_syns", "reset_options"]

# struct tcp_info. For a listening socket tcpi_unacked is the length of its accept queue (net/ipv4/tcp.c, tcp_get_info).
_TCPI_UNACKED = struct.Struct("=24xI")
# tcpi_state is its first octet. TCP_CLOSE on a socket that was half-closed here: the client's FIN or RST has arrived.
_TCP_CLOSE = b"\x07"
_IPPROTO_TCP = int(socket.IPPROTO_TCP)
_TCP_INFO = 11

# asm-generic/socket.h, since Linux 5.1; and the index of a network interface that no host has.
_SO_BINDTOIFINDEX = 62
_NO_INTERFACE = 2**31 - 1

# struct sock_filter of linux/filter.h: accept every segment except a SYN without ACK.
_SO_ATTACH_FILTER = 26
_INSTRUCTION_OCTETS = 8
_DROP_SYN = struct.pack(
    "HBBI" * 5,
    *(0x30, 0, 0, 13),  # load the octet that holds the flags
    *(0x54, 0, 0, 0x12),  # keep SYN and ACK
    *(0x15, 1, 0, 0x02),  # SYN alone: skip one
    *(0x06, 0, 0, 0xFFFF),  # accept
    *(0x06, 0, 0, 0),  # drop
)

_IPPROTO_MPTCP = 262  # include/uapi/linux/in.h
_TCP_SYN_RECV = b"03"  # include/net/tcp_states.h, as /proc/net/tcp writes it


def cork(listener: socket.socket) -> None:
    """Make a send and the following shutdown leave as one segment, on every connection that this listener accepts.

    TCP_CORK is inherited, and shutdown() flushes the corked octets with the FIN: one packet less in each direction. Not
    for a dialogue, as a corked socket delays any further reply by 200 ms; and not for Multipath TCP (RFC 8684), where
    shutdown() does not flush it.
    """
    if sys.platform == "linux":
        is_multipath = listener.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == _IPPROTO_MPTCP
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, not is_multipath)


def reset_options(listener: socket.socket) -> None:
    """Reset what another program may have set on a listening TCP socket and accepted sockets would inherit.

    TCP_DEFER_ACCEPT would keep silent clients from being answered, SO_LINGER could turn the FIN into a RST, SO_RCVLOWAT
    delay the reading of short commands, and TCP_CORK, from a process in another mode, the replies of a dialogue.
    """
    if sys.platform == "linux":
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


def accept_queue_len(listener: socket.socket, default: int) -> int:
    """Return how many connections can be accepted, or ``default`` where the kernel does not tell.

    One cheap call instead of a last accept() that fails: that one costs a file, a descriptor and an exception.
    """
    if sys.platform != "linux":
        return default
    info = listener.getsockopt(_IPPROTO_TCP, _TCP_INFO, _TCPI_UNACKED.size)
    if len(info) < _TCPI_UNACKED.size:  # an emulated kernel
        return default
    length: int = _TCPI_UNACKED.unpack(info)[0]
    return length


def _is_closed(connection: SocketType) -> bool:
    """Return whether the client of a half-closed connection has closed its side too, or reset it."""
    return connection.getsockopt(_IPPROTO_TCP, _TCP_INFO, 1) == _TCP_CLOSE


def _has_ended(connection: SocketType) -> bool:
    """Return the same where TCP_INFO is missing: whether the end of the client's input can be read."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


#: Chosen once, as it is called for every connection.
is_finished = _is_closed if sys.platform == "linux" else _has_ended


def refuse_syns(listener: socket.socket) -> None:
    """Refuse new connections on this listener, while handshakes in progress still complete.

    Closing a listening socket resets what is in its accept queue, and between the last accept() and the close() there
    is always time for one more. Bound to an interface that does not exist, the listener is not found by a SYN any more,
    which is then answered as for a closed port; a handshake in progress belongs to it already, so the queue runs dry.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel before 5.1: that moment remains
            listener.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, _NO_INTERFACE)


def drop_syns(listener: socket.socket) -> None:
    """Drop new connections' SYNs on this listener: clients send them again after 1 s (RFC 6298 §2.1).

    In place of `refuse_syns` where handshakes may have got a SYN cookie: the kernel knows nothing of them, and their
    last ACK has to find the listener. Documentation/networking/filter.rst.
    """
    program = array("B", _DROP_SYN)
    address, octets = program.buffer_info()
    with contextlib.suppress(OSError):
        filter_program = struct.pack("HP", octets // _INSTRUCTION_OCTETS, address)
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_program)


def has_sent_syn_cookies() -> bool:
    """Return whether this host has ever answered a SYN with a cookie: SyncookiesSent in /proc/net/netstat."""
    with contextlib.suppress(OSError, ValueError), open("/proc/net/netstat", "rb") as table:  # noqa: PTH123
        names, values = table.readline().split(), table.readline().split()
        return values[names.index(b"SyncookiesSent")] != b"0"
    return False


def pending_handshakes(ports: set[int]) -> int:
    """Return how many handshakes are in progress at these local ports: SYN_RECV in /proc/net/tcp, proc(5)."""
    suffixes = tuple(b":%04X" % port for port in ports)
    count = 0
    for name in ("tcp", "tcp6"):
        # As octets: with privileges dropped, or no descriptor left, no codec could be loaded now.
        with contextlib.suppress(OSError), open(f"/proc/net/{name}", "rb") as table:  # noqa: PTH123
            for line in table:
                _, local, _, state = line.split(None, 4)[:4]
                count += state == _TCP_SYN_RECV and local.endswith(suffixes)
    return count
