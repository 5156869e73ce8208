"""What clients do to a server that answers with one line; `bench soak` and the tests share these definitions."""

import asyncio
import socket
import struct
from collections.abc import Callable
from operator import methodcaller

from bench.outcomes import LINE

#: The outcome of a client that has read the whole line and the FIN.
WHOLE = "whole line"

#: The outcome of a client that does not stay to read.
LEFT = "left"

#: The last step of a client that does not stay to read.
LEAVE = 0

Step = bytes | float | int | Callable[[socket.socket], object]

_PAUSE, _LATE = 0.05, 1.0  # seconds; less than the 2 s for which nullsmtpd keeps an early talker's connection
_SILENT = 4.0  # more than that: the line is in the client's receive buffer by then
_READ = 4096  # octets

_QUIT, _EHLO, _MAIL = b"QUIT\r\n", b"EHLO client.example\r\n", b"MAIL FROM:<a@client.example>\r\n"
_MESSAGE = _EHLO + _MAIL + b"RCPT TO:<b@server.example>\r\nDATA\r\nSubject: hello\r\n\r\nhello\r\n.\r\n" + _QUIT
_CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(506)


_half_close = methodcaller("shutdown", socket.SHUT_WR)
_reset = methodcaller("setsockopt", socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # when it is closed
_send_urgent = methodcaller("send", b"!", socket.MSG_OOB)
_send_small_segments = methodcaller("setsockopt", socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
_buffer_little = methodcaller("setsockopt", socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 15)


def _poll_so_error(connection: socket.socket) -> None:
    if error := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(error, "SO_ERROR before the line was read")


#: What each client does once it is connected: octets are sent, a float is a pause in seconds, an integer a number of
#: octets to read, and a function is called. Then it reads to the end; but `LEAVE` ends it.
BEHAVIOURS: dict[str, tuple[Step, ...]] = {
    "waits_for_the_line": (),  # RFC 5321 §3.1
    "quits_after_the_line": (_READ, _QUIT),  # as most senders do, although the server has half-closed
    "sends_quit_first": (_QUIT,),
    "sends_ehlo_first": (_EHLO, _PAUSE),
    "sends_a_message_at_once": (_MESSAGE,),  # some spam programs
    "starts_tls_at_once": (_CLIENT_HELLO,),  # as for port 465
    "writes_twice": (_EHLO, _PAUSE, _MAIL, _PAUSE),  # a reset is noticed by the second write
    "dribbles": (_send_small_segments, *(step for octet in _EHLO for step in (bytes([octet]), _PAUSE / 10))),
    "blasts_64_kib": (b"x" * (1 << 16),),
    "blasts_1_mib": (_buffer_little, b"x" * (1 << 20)),  # it cannot read before the server has
    "half_closes": (_QUIT, _half_close),  # nc -N
    "half_closes_at_once": (_half_close,),  # nc -N </dev/null
    "half_closes_late": (_QUIT, _PAUSE, _half_close, _PAUSE),
    "reads_late": (_EHLO, _LATE),
    "stays_silent": (_SILENT,),
    "reads_octet_by_octet": (_QUIT, *[1] * len(LINE)),
    "polls_so_error": (_EHLO, *(_PAUSE / 2, _poll_so_error) * 5),  # event-loop clients, which then do not read
    "sends_urgent_data": (_send_urgent, _QUIT),  # RFC 6093
    "sends_after_the_fin": (_READ, _READ, _QUIT),
    "has_a_tiny_window": (_EHLO, _PAUSE, _MAIL, _PAUSE),
    "resets_at_once": (_reset, LEAVE),
    "resets_after_a_command": (_EHLO, _reset, LEAVE),
    "closes_at_once": (LEAVE,),  # a port scan
}


async def one_client(address: tuple[str, int], name: str, timeout: float) -> str:  # noqa: ASYNC109
    """Return the outcome of one client: `WHOLE`, `LEFT`, or what it saw instead of the line."""
    loop = asyncio.get_running_loop()
    received = b""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as connection:
            connection.setblocking(False)
            if name == "has_a_tiny_window":  # before the handshake announces another; the kernel makes it 2,304 octets
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            async with asyncio.timeout(timeout):
                await loop.sock_connect(connection, address)
                for step in BEHAVIOURS[name]:
                    if step == LEAVE:
                        return LEFT
                    received += await _take(loop, connection, step)
                while more := await loop.sock_recv(connection, _READ):
                    received += more
    except TimeoutError:
        return f"silence after {received!r}"
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return f"{type(error).__name__} after {received!r}"
    return WHOLE if received == LINE else f"FIN after {received!r}"


async def _take(loop: asyncio.AbstractEventLoop, connection: socket.socket, step: Step) -> bytes:
    """Take one step; return what it has read."""
    if isinstance(step, bytes):
        await loop.sock_sendall(connection, step)
    elif isinstance(step, float):
        await asyncio.sleep(step)
    elif isinstance(step, int):
        return await loop.sock_recv(connection, step)
    else:
        step(connection)
    return b""
