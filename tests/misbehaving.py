"""A server that does to every connection what it is told to."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator, Sequence

from support import PATIENCE

__all__ = ["FIN", "HOLD", "LISTEN", "RESET", "Deeds", "Server", "serving"]

# What a server may do besides sending octets.
FIN, RESET, HOLD, LISTEN = "FIN", "reset", "hold", "listen"
Deeds = Sequence[bytes | str]


class Server:
    """Does ``deeds`` on every connection, in a thread.

    Octets are sent. FIN half-closes, RESET resets, HOLD waits for the client to close, LISTEN for one command line.
    After the last one it reads until the client closes.
    """

    def __init__(self, deeds: Deeds = (), address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.deeds = deeds
        self.heard: list[bytes] = []
        self._listener = socket.create_server(address)
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
