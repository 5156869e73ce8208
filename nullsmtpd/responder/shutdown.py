"""How does a port close without a reset for a client whose handshake is in progress?

accept(2) returns only what the kernel has completed, and closing a listening socket resets what is in its accept queue.
"""

import asyncio
import contextlib
import socket
import struct
import sys
from array import array

from nullsmtpd.responder.accept import Acceptor
from nullsmtpd.runtime.tcp import accept_queue_len

__all__ = ["BACKLOG_DRAIN_TIMEOUT", "COOKIE_GRACE", "HANDSHAKE_TIMEOUT", "SHUTDOWN_POLL_INTERVAL"]
__all__ += ["drain_accept_queues"]

#: Seconds for draining the accept queue at shutdown where the port stays open; a full one takes a fifth of that.
#: Without this limit a steady stream of new connections would block shutdown.
BACKLOG_DRAIN_TIMEOUT = 1.0

#: Seconds that shutdown waits for handshakes in progress, where the port is closed. A lost SYN-ACK is sent again after
#: 1 s (RFC 6298 §2.1).
HANDSHAKE_TIMEOUT = 3.0

#: Seconds that it waits in any case where SYN cookies were sent, as the kernel knows nothing of such handshakes: more
#: than a round trip. The SYNs that are dropped meanwhile are sent again after 1 s, too.
COOKIE_GRACE = 1.0

SHUTDOWN_POLL_INTERVAL = 0.01

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

_TCP_SYN_RECV = b"03"  # include/net/tcp_states.h, as /proc/net/tcp writes it


async def drain_accept_queues(acceptor: Acceptor, *, close_port: bool) -> None:
    """Answer every connection that the kernel has completed, then close the listeners.

    Without ``close_port`` another process keeps them open: later clients wait for the next process.
    """
    acceptor.stop()
    loop, listeners = asyncio.get_running_loop(), acceptor.listeners
    ports = {listener.getsockname()[1] for listener in listeners}
    uses_cookies = close_port and _has_sent_syn_cookies()
    if close_port:
        for listener in listeners:
            (_drop_syns if uses_cookies else _refuse_syns)(listener)
    # At least until a SYN that was received just before is in the table of handshakes.
    grace = COOKIE_GRACE if uses_cookies else SHUTDOWN_POLL_INTERVAL
    limit = HANDSHAKE_TIMEOUT if close_port else BACKLOG_DRAIN_TIMEOUT
    start = loop.time()
    while (elapsed := loop.time() - start) < limit:
        if acceptor.accept_batch():
            await asyncio.sleep(0)
        elif close_port and (
            elapsed < grace
            or _pending_handshakes(ports)
            or any(accept_queue_len(listener, default=0) for listener in listeners)
        ):
            await asyncio.sleep(SHUTDOWN_POLL_INTERVAL)
        else:
            break
    await asyncio.sleep(SHUTDOWN_POLL_INTERVAL)  # a handshake just completed, in neither of both, is in the queue
    acceptor.accept_batch()
    for listener in listeners:
        if close_port:
            with contextlib.suppress(OSError):  # not Linux: ENOTCONN
                listener.shutdown(socket.SHUT_RDWR)  # other processes may have a copy, which close() would leave
        listener.close()


def _refuse_syns(listener: socket.socket) -> None:
    """Refuse new connections on this listener, while handshakes in progress still complete.

    Between the last accept() and the close() there is always time for one more. Bound to an interface that does not
    exist, the listener is not found by a SYN any more, which is then answered as for a closed port; a handshake in
    progress belongs to it already, so the queue runs dry.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel before 5.1: that moment remains
            listener.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, _NO_INTERFACE)


def _drop_syns(listener: socket.socket) -> None:
    """Drop new connections' SYNs on this listener: clients send them again after 1 s (RFC 6298 §2.1).

    In place of `_refuse_syns` where handshakes may have got a SYN cookie: the kernel knows nothing of them, and their
    last ACK has to find the listener. Documentation/networking/filter.rst.
    """
    program = array("B", _DROP_SYN)
    address, octets = program.buffer_info()
    with contextlib.suppress(OSError):
        filter_program = struct.pack("HP", octets // _INSTRUCTION_OCTETS, address)
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_program)


def _has_sent_syn_cookies() -> bool:
    """Return whether this host has ever answered a SYN with a cookie: SyncookiesSent in /proc/net/netstat."""
    with contextlib.suppress(OSError, ValueError), open("/proc/net/netstat", "rb") as table:  # noqa: PTH123
        names, values = table.readline().split(), table.readline().split()
        return values[names.index(b"SyncookiesSent")] != b"0"
    return False


def _pending_handshakes(ports: set[int]) -> int:
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
