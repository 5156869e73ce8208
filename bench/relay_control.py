"""The least that a socketmap server on uvloop can be, a fixed reply to all: ``relay_control.py PORT BACKLOG``.

What `nullsmtpd relay` costs beyond this is what it does: parse, look up, count.
"""

import asyncio
import socket
import sys

import uvloop

REPLY = b"9:NOTFOUND ,"


class Fixed(asyncio.Protocol):
    """Says the same each time that something comes; its clients send one request at a time, in one piece."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note where to."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Say it."""
        self._transport.write(REPLY)  # type: ignore[attr-defined] # uvloop's is no subclass of asyncio.Transport


def main(port: int, backlog: int) -> None:
    """Serve until killed."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    loop = uvloop.new_event_loop()
    loop.run_until_complete(loop.create_server(Fixed, sock=listener, backlog=backlog))
    loop.run_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
