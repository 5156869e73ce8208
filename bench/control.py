"""Python servers to compare with, importing only what they need: ``control.py uvloop|empty|socketmap PORT BACKLOG``.

``uvloop``: a Protocol that writes the line and closes, as most would write it first.
``empty``: one listening socket, bound by hand, and nothing else: the least that a uvloop daemon can be.
``socketmap``: a fixed reply to every request; what `nullsmtpd relay` costs beyond this is to parse, look up and count.
"""

import asyncio  # as uvloop does
import socket
import sys
from typing import cast

import uvloop


class _Refuse(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self.transport.write(b"521 Host does not accept mail\r\n")
        self.transport.close()


class _NotFound(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"9:NOTFOUND ,")


def main(kind: str, port: int, backlog: int) -> None:
    """Serve until killed."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    loop = uvloop.new_event_loop()
    if kind == "empty":
        listener.setblocking(False)
        listener.listen(backlog)
        loop.add_reader(listener, _close_next, listener)
    else:
        protocol = _Refuse if kind == "uvloop" else _NotFound
        loop.run_until_complete(loop.create_server(protocol, sock=listener, backlog=backlog))
    loop.run_forever()


def _close_next(listener: socket.socket) -> None:
    listener.accept()[0].close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
