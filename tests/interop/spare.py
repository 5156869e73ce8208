"""A second MX that takes every message and forgets it: enough SMTP for the senders here (RFC 5321 §4.5.1).

Run as a program with an address as argument; says ``ready`` when a connection succeeds.
"""

import contextlib
import socketserver
import sys
from collections.abc import Iterator

from child import child
from network import Network

__all__ = ["spare_host"]

_PORT = 25


@contextlib.contextmanager
def spare_host(network: Network) -> Iterator[None]:
    """Run the second MX of a network for the length of the block."""
    with child((*network.receiving_prefix, sys.executable, __file__, network.spare_address)):
        yield


class _Session(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self._reply("220 ready")
        for line in self.rfile:
            verb = line[:4].upper()
            if verb == b"DATA":
                self._reply("354 go on")
                for _ in iter(self.rfile.readline, b".\r\n"):
                    pass
            self._reply("221 bye" if verb == b"QUIT" else "250 ok")
            if verb == b"QUIT":
                break

    def _reply(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


def _main() -> None:
    with socketserver.ThreadingTCPServer((sys.argv[1], _PORT), _Session) as server:
        print("ready", flush=True)  # noqa: T201 - this is a program
        server.serve_forever()


if __name__ == "__main__":
    _main()
