"""A server that does to every connection what it is told to."""

import ast
import contextlib
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Sequence

from hypothesis import strategies as st
from support import LINE, PATIENCE

__all__ = ["FIN", "HOLD", "LISTEN", "OCTETS", "RESET", "Deeds", "Server", "serving"]

# What a server may do besides sending octets.
FIN, RESET, HOLD, LISTEN = "FIN", "reset", "hold", "listen"
Deeds = Sequence[bytes | str]

_PIECES = st.sampled_from(
    [
        *(b"521", b" ", b"-", b"\r\n", b"\r", b"\n", b"Host", b"5", b"\t", b"\x00\xff", b"x" * 508, b"521 " * 1024),
        *(LINE, b"521-Host\r\n", b"521 \r\n", b"521\r\n", b"220 mx\r\n", b"521-" + b"x" * 506 + b"\r\n"),
    ]
)
_WELL_FORMED = st.builds(
    lambda lines, last: b"".join(b"521-" + line + b"\r\n" for line in lines) + b"521" + last + b"\r\n",
    st.lists(st.from_regex(rb"[\t -~]{0,20}", fullmatch=True), max_size=3),
    st.from_regex(rb"( [\t -~]{0,20})?", fullmatch=True),
)
#: What a server may send: anything, and much that is nearly or wholly a 521 reply.
OCTETS = st.binary(max_size=40) | st.lists(_PIECES, max_size=10).map(b"".join) | _WELL_FORMED


class Server:
    """Does ``deeds`` on every connection, in a thread.

    Octets are sent. FIN half-closes, RESET resets, HOLD waits for the client to close, LISTEN for one command line.
    After the last one it reads until the client closes.
    """

    def __init__(self, deeds: Deeds = (), address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.deeds = deeds
        self.heard: list[bytes] = []
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._listener = socket.create_server(address, family=family)
        self.port: int = self._listener.getsockname()[1]
        self.target = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(PATIENCE)
                    self._treat(connection)

    def _treat(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection.makefile("rb") as commands:
            for deed in self.deeds:
                if isinstance(deed, bytes):
                    connection.sendall(deed)
                elif deed == FIN:
                    connection.shutdown(socket.SHUT_WR)
                elif deed == LISTEN:
                    self.heard.append(commands.readline())
                elif deed == RESET:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
            self.heard.append(commands.read())


@contextlib.contextmanager
def serving(*deeds: bytes | str) -> Iterator[Server]:
    server = Server(deeds)
    try:
        yield server
    finally:
        server.close()


def main() -> None:
    """Serve at the addresses and do the deeds in a literal dict, until stdin is closed: for a network namespace."""
    with contextlib.ExitStack() as stack:
        for address, deeds in ast.literal_eval(sys.argv[1]).items():
            stack.callback(Server(deeds, (address, 25)).close)
        print(flush=True)  # noqa: T201 - they listen now
        sys.stdin.read()


if __name__ == "__main__":
    main()
