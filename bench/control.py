"""Python servers to compare with, each importing only what it needs: ``control.py asyncio|uvloop|empty PORT BACKLOG``.

``asyncio`` and ``uvloop``: a Protocol that writes the line and closes, as most would write it first, on either loop.
``empty``: a uvloop loop with one socket, bound by hand, and nothing else: the least that a uvloop daemon can be.
"""

import socket
import sys

LINE = b"521 Host does not accept mail\r\n"


def main(kind: str, port: int, backlog: int) -> None:
    """Serve until killed."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    if kind == "empty":
        _serve_nothing(listener, backlog)
    else:
        _serve_protocol(listener, backlog, on_uvloop=kind == "uvloop")


def _serve_nothing(listener: socket.socket, backlog: int) -> None:
    import uvloop

    listener.setblocking(False)
    loop = uvloop.new_event_loop()
    listener.listen(backlog)
    loop.add_reader(listener, _close_one, listener)
    loop.run_forever()


def _close_one(listener: socket.socket) -> None:
    listener.accept()[0].close()


def _serve_protocol(listener: socket.socket, backlog: int, *, on_uvloop: bool) -> None:
    import asyncio

    class Refuse(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.write(LINE)  # type: ignore[attr-defined] # uvloop's is no subclass of asyncio.Transport
            transport.close()

    if on_uvloop:
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    loop.run_until_complete(loop.create_server(Refuse, sock=listener, backlog=backlog))
    loop.run_forever()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
