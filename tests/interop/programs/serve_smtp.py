"""Two hosts that are no nullsmtpd: arguments are their addresses. Prints ``ready`` when connections succeed.

The first takes every message and forgets it: enough SMTP for the senders here (RFC 5321 §4.5.1). The second says 521 to
EHLO and HELO.
"""

import contextlib
import socketserver
import sys
import threading

_PORT = 25


class _Taking(socketserver.StreamRequestHandler):
    hello = b"250-spare\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            self._converse()

    def _converse(self) -> None:
        self.wfile.write(b"220 ready\r\n")
        for line in self.rfile:
            verb = line[:4].upper()
            if verb == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                for _ in iter(self.rfile.readline, b".\r\n"):
                    pass
            replies = {b"EHLO": self.hello, b"HELO": self.hello, b"QUIT": b"221 bye\r\n"}
            self.wfile.write(replies.get(verb, b"250 ok\r\n"))
            if verb == b"QUIT":
                break


class _Refusing(_Taking):
    hello = b"521 Host does not accept mail\r\n"


for address, handler in zip(sys.argv[1:], (_Taking, _Refusing), strict=True):
    server = socketserver.ThreadingTCPServer((address, _PORT), handler)
    threading.Thread(target=server.serve_forever).start()
print("ready", flush=True)  # noqa: T201 - this is a program
