"""What a sender puts on the wire to port 25, as the receiving host's network card sees it.

The default mode of nullsmtpd never looks at it, so nothing but a capture can tell. Run as a program with
an address as argument, this file captures until its standard input ends and every connection that it saw begin has
ended, and then prints a JSON list: for each connection, in order, what the client sent.
"""

import contextlib
import json
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

from child import UNTIL_WE_END
from network import Network

__all__ = ["Capture", "capture"]

_PATIENCE = 20.0  # seconds to wait for a client to close: OpenSMTPD keeps a session for 10 more, lest it be of use
_ETH_P_IP = 0x0800
_FIN, _SYN, _RST = 1, 2, 4


class Capture:
    """A capture under way."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self._popen = popen
        self._sent: list[str] | None = None

    def stop(self) -> list[str]:
        """Wait until the clients are done and return what each of them sent, in order of connection."""
        if self._sent is None:
            output, _ = self._popen.communicate(timeout=_PATIENCE * 2)
            self._sent = json.loads(output)
            assert self._sent is not None
        return self._sent


@contextlib.contextmanager
def capture(network: Network) -> Iterator[Capture]:
    """Capture for the length of the block what reaches port 25 of a network's nullsmtpd."""
    command = [*UNTIL_WE_END, *network.receiving_prefix, sys.executable, __file__, network.address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as popen:
        try:
            assert popen.stdout
            assert popen.stdout.readline() == "ready\n"
            yield Capture(popen)
        finally:
            popen.kill()


class _Connection:
    def __init__(self) -> None:
        self.is_open = True
        self._segments: dict[int, bytes] = {}  # by sequence number: a retransmission is not said twice

    def add(self, sequence: int, flags: int, payload: bytes) -> None:
        if payload:
            self._segments[sequence] = payload
        if flags & (_FIN | _RST):
            self.is_open = False

    def text(self) -> str:
        return b"".join(self._segments.values()).decode("latin-1")


def _note(packet: bytes, address: bytes, connections: dict[bytes, _Connection]) -> None:
    tcp = packet[(packet[0] & 15) * 4 : struct.unpack_from("!H", packet, 2)[0]]
    if packet[9] != socket.IPPROTO_TCP or packet[16:20] != address or struct.unpack_from("!H", tcp, 2)[0] != 25:
        return
    client = packet[12:16] + tcp[:2]
    sequence, offset, flags = struct.unpack_from("!I4xBB", tcp, 4)
    if flags & _SYN:
        connections[client] = _Connection()
    if client in connections:
        connections[client].add(sequence, flags, tcp[(offset >> 4) * 4 :])


def _main() -> None:
    address = socket.inet_aton(sys.argv[1])
    connections: dict[bytes, _Connection] = {}
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP)) as card:
        print("ready", flush=True)  # noqa: T201 - this is a program
        deadline = None
        while True:
            readable, _, _ = select.select(
                [card] if deadline else [card, sys.stdin], [], [], 0.05 if deadline else None
            )
            if card in readable:
                _note(card.recv(65536), address, connections)
            elif deadline is None:
                deadline = time.monotonic() + _PATIENCE
            elif time.monotonic() > deadline or not any(c.is_open for c in connections.values()):
                break
    print(json.dumps([connection.text() for connection in connections.values()]))  # noqa: T201


if __name__ == "__main__":
    _main()
