"""Metrics for Prometheus over HTTP, on the daemon's own event loop.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/, text, version 0.0.4. HTTP: RFC 9110 and RFC 9112,
as much of them as a scrape takes: GET and HEAD of one resource, one request per connection.
"""

import asyncio
import contextlib
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, cast

from nullsmtpd import __version__

__all__ = ["Family", "build_info", "serve_metrics"]

#: Readers at once, with one descriptor each: a pair of Prometheus servers, and an operator's curl beside them.
MAX_READERS = 4

#: Seconds that one reader may take; Prometheus itself gives up after ten.
READER_TIMEOUT = 5.0

#: Seconds without accepting after an accept has failed.
ACCEPT_PAUSE = 0.1

#: Octets of a request: Prometheus sends some hundred. RFC 9110 §5.4 lets a server refuse larger ones.
MAX_REQUEST_OCTETS = 8192

_END_OF_HEAD = b"\r\n\r\n"
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Family(NamedTuple):
    """One metric: its whole ``name``, its ``kind`` (``counter`` or ``gauge``), and its samples: labels and value."""

    name: str
    kind: str
    help: str
    samples: Sequence[tuple[dict[str, str], float]]


def build_info(**labels: str) -> Family:
    """Return the metric that has the versions as labels, beside ``labels``."""
    from uvloop._version import __version__ as uvloop_version

    python = ".".join(map(str, sys.version_info[:3]))
    labels = {"version": __version__, **labels, "python": python, "uvloop": uvloop_version}
    return Family("nullsmtpd_build_info", "gauge", "Versions, as labels; the value is 1.", [(labels, 1)])


def _exposition(families: Iterable[Family]) -> str:
    lines = []
    for name, kind, text, samples in families:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        for labels, value in samples:
            pairs = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
            lines.append(f"{name}{{{pairs}}} {value}" if pairs else f"{name} {value}")
    return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class _ProcessMetrics:
    """The usual ``process_`` metrics, proc(5). The directories are opened before privileges are dropped."""

    def __init__(self) -> None:
        # After setuid(2) the process may not open its own /proc/self/fd any more, but still read an open directory.
        self._files = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
        self._ticks = os.sysconf("SC_CLK_TCK")
        self._page = os.sysconf("SC_PAGE_SIZE")
        started = float(_stat()[19]) / self._ticks
        self._start_time = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + started

    def families(self) -> list[Family]:
        stat = _stat()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        cpu = (int(stat[11]) + int(stat[12])) / self._ticks
        files = len(os.listdir(self._files)) - 1  # without the copy that listdir() makes of the directory
        limit = float("inf") if soft == resource.RLIM_INFINITY else soft
        return [
            _process("cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", cpu),
            _process("open_fds", "gauge", "Number of open file descriptors.", files),
            _process("max_fds", "gauge", "Maximum number of open file descriptors.", limit),
            _process("virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", int(stat[20])),
            _process("resident_memory_bytes", "gauge", "Resident memory size in bytes.", int(stat[21]) * self._page),
            _process("start_time_seconds", "gauge", "Start time in seconds since the epoch.", self._start_time),
        ]


def _process(name: str, kind: str, text: str, value: float) -> Family:
    return Family(f"process_{name}", kind, text, [({}, value)])


def _stat() -> list[str]:
    """Return the fields of /proc/self/stat from the third, ``state``, on."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as stat:  # noqa: PTH123
        return stat.read().rpartition(")")[2].split()


async def serve_metrics(
    loop: asyncio.AbstractEventLoop, listeners: list[socket.socket], collect: Callable[[], list[Family]]
) -> None:
    """Serve what ``collect`` returns, and the ``process_`` metrics, at ``/metrics``, until the process ends.

    ``listeners``: bound and listening. Readers are bounded: when one more connects, the oldest without a complete
    request is closed.
    """
    process = _ProcessMetrics() if sys.platform == "linux" else None
    readers: dict[_Reader, None] = {}
    tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references

    def render() -> str:
        families = collect()
        if process is not None:
            with contextlib.suppress(OSError):  # no file descriptor left to read /proc with
                families += process.families()
        return _exposition(families)

    # Not create_server(): without file descriptors libuv would close connections unanswered, or be busy failing.
    def accept(listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # that reader waits in the accept queue, or has gone
            loop.remove_reader(listener)
            loop.call_later(ACCEPT_PAUSE, loop.add_reader, listener, accept, listener)
            return
        task = loop.create_task(attach(connection))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def attach(connection: socket.socket) -> None:
        try:
            await loop.connect_accepted_socket(lambda: _Reader(render, readers), connection)
        except OSError:  # the reader has gone, or no memory for a transport
            connection.close()

    for listener in listeners:
        loop.add_reader(listener, accept, listener)


class _Reader(asyncio.Protocol):
    """One HTTP connection, in ``readers`` from its start to its end. No method raises."""

    def __init__(self, render: Callable[[], str], readers: "dict[_Reader, None]") -> None:
        self._render = render
        self._readers = readers
        self._request = b""
        self._has_request = False
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._timer = asyncio.get_running_loop().call_later(READER_TIMEOUT, self._abort)
        if len(self._readers) >= MAX_READERS:
            oldest = next((reader for reader in self._readers if not reader._has_request), self)  # noqa: SLF001
            oldest._abort()  # noqa: SLF001
            self._readers.pop(oldest, None)
        self._readers[self] = None

    def data_received(self, data: bytes) -> None:
        if self._has_request or self._transport is None:
            return
        self._request += data
        if _END_OF_HEAD in self._request:
            self._has_request = True
            status, with_body = _status(self._request.partition(b"\r\n")[0])
            self._respond(status, with_body=with_body)
        elif len(self._request) > MAX_REQUEST_OCTETS:
            self._has_request = True
            self._respond("431 Request Header Fields Too Large", with_body=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._readers.pop(self, None)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    def _respond(self, status: str, *, with_body: bool) -> None:
        assert self._transport is not None
        body = self._render() if status == "200 OK" else f"{status}; metrics are at /metrics.\n"
        fields = [f"HTTP/1.1 {status}", f"Content-Type: {_CONTENT_TYPE}", f"Content-Length: {len(body.encode())}"]
        if status.startswith("405"):
            fields.append("Allow: GET, HEAD")
        head = "\r\n".join([*fields, "Connection: close", "", ""])
        with contextlib.suppress(OSError, RuntimeError):  # the reader has gone already
            self._transport.write((head + (body if with_body else "")).encode())
        self._transport.close()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _status(request_line: bytes) -> tuple[str, bool]:
    """Return the status for a request line, and whether the response has a body (RFC 9110 §9.3.2: not for HEAD)."""
    method, _, rest = request_line.partition(b" ")
    target, _, version = rest.partition(b" ")
    if not version.startswith(b"HTTP/1."):
        return "400 Bad Request", True
    if method not in {b"GET", b"HEAD"}:
        return "405 Method Not Allowed", True
    is_known = target.partition(b"?")[0] == b"/metrics"
    return ("200 OK" if is_known else "404 Not Found"), method == b"GET"
