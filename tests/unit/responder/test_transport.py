"""The transport of a session on a real socket pair and event loop."""

import asyncio
import socket

from nullsmtpd.responder.transport import Poller, SocketTransport


class Counting(socket.socket):
    """A socket that counts its reads."""

    reads = 0

    def recv(self, size: int, flags: int = 0) -> bytes:
        self.reads += 1
        return super().recv(size, flags)


def test_the_end_of_input_is_read_once_while_output_waits() -> None:
    """A half-closed client that does not read costs nothing until it does; then it gets everything, and a FIN."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        server, client = socket.socketpair()
        connection = Counting(fileno=server.detach())
        transport = SocketTransport(loop, Poller(loop), connection, asyncio.Protocol())
        greeting = b"x" * (1 << 20)  # more than the kernel takes
        transport.write(greeting)
        assert transport.unsent
        client.shutdown(socket.SHUT_WR)
        for _ in range(20):
            await asyncio.sleep(0)
        assert connection.reads == 1
        with client:
            client.setblocking(False)
            received = b""
            while octets := await loop.sock_recv(client, 1 << 16):
                received += octets
        assert received == greeting

    with asyncio.Runner() as runner:
        runner.run(asyncio.wait_for(scenario(), 20))
