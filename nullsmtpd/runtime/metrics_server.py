"""The HTTP server that scrapes of the metrics come to: one more thread for each, and not many of them."""

import contextlib
import errno
import io
import socket
import socketserver
import threading
import time
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

__all__ = ["MAX_SCRAPES", "SCRAPE_SECONDS", "serve_on"]

#: Readers at once, a thread and a descriptor each: a pair of Prometheus servers, and an operator's curl beside them.
MAX_SCRAPES = 4

#: Seconds that a reader may be silent, and have in all when others wait; Prometheus itself gives up after ten.
SCRAPE_SECONDS = 5

#: Seconds to accept nothing when that failed: the next reader would be there at once, and again, and again. And seconds
#: in which a reader who was cut off leaves his place.
ACCEPT_PAUSE = 0.1

#: Seconds between two looks of the HTTP server at whether it was shut down, which nobody asks for.
NO_POLLING = 86_400.0


def serve_on(listener: socket.socket, app: Any) -> None:  # noqa: ANN401 - PEP 3333, see wsgiref.types
    """Serve a WSGI application over HTTP on a socket that listens, in threads that end with the process.

    Raises `OSError` when no thread can be had.
    """
    server = _Server(listener)
    server.set_app(app)
    try:
        threading.Thread(target=server.serve_forever, args=[NO_POLLING], daemon=True).start()
    except RuntimeError as error:  # a limit of processes
        raise OSError(errno.EAGAIN, str(error)) from None


class _Handler(WSGIRequestHandler):
    """One scrape; nothing that it says is logged."""

    timeout = SCRAPE_SECONDS

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass

    def get_stderr(self) -> io.StringIO:
        """Return where a traceback goes: to nobody, as a write to a full stderr would keep the thread for ever."""
        return io.StringIO()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """An HTTP server on a socket that listens already, with a bound on its threads, and no word on stderr."""

    daemon_threads = True

    def __init__(self, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        super().__init__((host, port), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        # What server_bind would do, but for the look into DNS.
        self.server_name, self.server_port = host, port
        self.setup_environ()
        self._room = threading.BoundedSemaphore(MAX_SCRAPES)
        self._since: dict[socket.socket, float] = {}  # by reader, the oldest first

    def get_request(self) -> tuple[Any, Any]:
        """Accept; where there is no descriptor for that, give others the time to close theirs."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(ACCEPT_PAUSE)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as in socketserver
        if not self._room.acquire(blocking=False) and not self._take_place_of_oldest():
            self.shutdown_request(request)
            return
        self._since[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be had
            self._leave(request)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as in socketserver
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._leave(request)

    def _take_place_of_oldest(self) -> bool:
        """Cut off who has had his time, an octet now and then, and take his place; tell whether there was one."""
        for reader, since in list(self._since.items())[:1]:
            if since + SCRAPE_SECONDS <= time.monotonic():
                with contextlib.suppress(OSError):  # he has just left
                    reader.shutdown(socket.SHUT_RDWR)
                return self._room.acquire(timeout=ACCEPT_PAUSE)
        return False

    def _leave(self, reader: socket.socket) -> None:
        self._since.pop(reader, None)
        self._room.release()

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a reader that went away or was silent for too long
