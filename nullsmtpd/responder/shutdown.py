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

__all__ = ["BACKLOG_TIMEOUT", "COOKIE_GRACE", "HANDSHAKE_TIMEOUT", "SHUTDOWN_POLL_INTERVAL"]
__all__ += ["close_port", "release_port"]

#: Seconds for answering the accept queue where the port stays open; a full queue (4,096) takes about 0.2 s. Without
#: this limit a steady stream of new connections would block shutdown.
BACKLOG_TIMEOUT = 1.0

#: Seconds that shutdown waits for handshakes in progress, where the port is closed. A lost SYN-ACK is sent again after
#: 1 s (RFC 6298 §2.1).
HANDSHAKE_TIMEOUT = 3.0

#: Seconds that it waits in any case where this host has sent SYN cookies since it was started, as the kernel knows
#: nothing of such handshakes: more than a round trip. SYNs that are dropped meanwhile are sent again after 1 s, too.
COOKIE_GRACE = 1.0

#: Seconds between two looks at what shutdown waits for.
SHUTDOWN_POLL_INTERVAL = 0.01

# asm-generic/socket.h, since Linux 5.1; and the index of a network interface that no host has.
_SO_BINDTOIFINDEX = 62
_NO_INTERFACE = 2**31 - 1

# struct sock_filter of linux/filter.h, eight octets an instruction: accept every segment except a SYN without ACK.
_SO_ATTACH_FILTER = 26
_DROP_SYN = struct.pack(
    "HBBI" * 5,
    *(0x30, 0, 0, 13),  # load the octet that holds the flags
    *(0x54, 0, 0, 0x12),  # keep SYN and ACK
    *(0x15, 1, 0, 0x02),  # SYN alone: skip one
    *(0x06, 0, 0, 0xFFFF),  # accept
    *(0x06, 0, 0, 0),  # drop
)

_TCP_SYN_RECV = b"03"  # include/net/tcp_states.h, as /proc/net/tcp writes it


async def release_port(acceptor: Acceptor) -> None:
    """Answer what is in the accept queues, and close this process's copies of listeners that stay open.

    Later clients wait there for the next process.
    """
    acceptor.stop()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + BACKLOG_TIMEOUT
    while acceptor.accept_batch():
        if loop.time() >= deadline:
            break
        await asyncio.sleep(0)
    for listener in acceptor.listeners:
        listener.close()


async def close_port(acceptor: Acceptor) -> None:
    """Keep new connections away, answer every one that completes, and close the listeners."""
    acceptor.stop()
    loop, listeners = asyncio.get_running_loop(), acceptor.listeners
    ports = {listener.getsockname()[1] for listener in listeners}
    uses_cookies = _has_sent_syn_cookies()
    for listener in listeners:
        (_drop_syns if uses_cookies else _refuse_syns)(listener)
    # At least until the table of handshakes has a SYN that was received just before.
    grace = COOKIE_GRACE if uses_cookies else SHUTDOWN_POLL_INTERVAL
    handshakes: set[bytes] | None = None
    start = loop.time()
    while (elapsed := loop.time() - start) < HANDSHAKE_TIMEOUT:
        if acceptor.accept_batch():
            await asyncio.sleep(0)
            continue
        if elapsed >= grace:
            # Handshakes with other processes that share the port (SO_REUSEPORT) begin all the time: later ones do not
            # count. And where nothing can be answered for lack of descriptors, the accept queue does not run empty.
            pending = _handshakes(ports)
            handshakes = pending if handshakes is None else handshakes & pending
            if not handshakes and not any(accept_queue_len(listener, default=0) for listener in listeners):
                break
        await asyncio.sleep(SHUTDOWN_POLL_INTERVAL)
    # A handshake that completed between those two looks was in neither place; now it is in the accept queue.
    await asyncio.sleep(SHUTDOWN_POLL_INTERVAL)
    acceptor.accept_batch()
    for listener in listeners:
        with contextlib.suppress(OSError):  # not Linux: ENOTCONN
            listener.shutdown(socket.SHUT_RDWR)  # other processes may have a copy, which close() would leave
        listener.close()


def _refuse_syns(listener: socket.socket) -> None:
    """Refuse new connections on this listener, while handshakes in progress still complete.

    Between the last accept() and the close() there is always time for one more connection. Bound to an interface that
    does not exist, the listener is not found by a SYN any more, which is then answered as for a closed port; a
    handshake in progress belongs to it already, so the queue runs empty. With SO_REUSEPORT the SYN is dropped instead,
    and another process answers when the client sends it again after 1 s (RFC 6298 §2.1).
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel before 5.1: the race remains
            listener.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, _NO_INTERFACE)


def _drop_syns(listener: socket.socket) -> None:
    """Drop new connections' SYNs on this listener: clients send them again after 1 s (RFC 6298 §2.1).

    In place of `_refuse_syns` where handshakes may have got a SYN cookie: the kernel knows nothing of them, and their
    last ACK has to find the listener. Documentation/networking/filter.rst.
    """
    program = array("B", _DROP_SYN)
    address, octets = program.buffer_info()
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", octets // 8, address))
    except OSError:  # refused to ordinary users by some systems
        _refuse_syns(listener)


def _has_sent_syn_cookies() -> bool:
    """Return whether this host has ever answered a SYN with a cookie: SyncookiesSent in /proc/net/netstat."""
    with contextlib.suppress(OSError, ValueError), open("/proc/net/netstat", "rb") as table:  # noqa: PTH123
        names, values = table.readline().split(), table.readline().split()
        return values[names.index(b"SyncookiesSent")] != b"0"
    return False


def _handshakes(ports: set[int]) -> set[bytes]:
    """Return the addresses of handshakes in progress at these local ports: SYN_RECV in /proc/net/tcp, proc(5)."""
    suffixes = tuple(b":%04X" % port for port in ports)
    found = set()
    for name in ("tcp", "tcp6"):
        # As octets: with privileges dropped, or no descriptor left, no codec could be loaded now.
        with contextlib.suppress(OSError), open(f"/proc/net/{name}", "rb") as table:  # noqa: PTH123
            for line in table:
                _, local, remote, state = line.split(None, 4)[:4]
                if state == _TCP_SYN_RECV and local.endswith(suffixes):
                    found.add(local + remote)
    return found
