"""Metrics for Prometheus over HTTP, on the daemon's own event loop.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/, text, version 0.0.4. HTTP: RFC 9110 and RFC 9112,
as much of them as a scrape takes: GET and HEAD of one resource, one request per connection.
"""

import asyncio
import contextlib
import functools
import os
import re
import resource
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from nullsmtpd import __version__
from nullsmtpd.runtime.log import log
from nullsmtpd.runtime.sockets import Address, bind, local_address, pause_accepting

__all__ = ["build_info", "metric", "serve_metrics"]

#: Readers at once, with one descriptor each: a pair of Prometheus servers, and an operator's curl beside them.
MAX_READERS = 4

#: Seconds until a reader's request must be complete; Prometheus itself gives up after ten.
READER_TIMEOUT = 5.0

#: Octets of a request: Prometheus sends some hundred. RFC 9110 §5.4 lets a server refuse larger ones.
MAX_REQUEST_OCTETS = 8192

#: Connections inherit it from the listening socket. A response has some three kilobytes, and net.ipv4.tcp_wmem may give
#: a connection less than that; this is below the default of net.core.wmem_max.
SEND_BUFFER_OCTETS = 1 << 16

_END_OF_HEAD = b"\r\n\r\n"
# RFC 9112 §2.2: after an empty line; §3.2.1 and §3.2.2: a path and a query, in absolute-form after a scheme and a host.
_REQUEST_LINE = re.compile(
    rb"(?:\r\n)?([^ \r\n]+) (?:(?i:http)://[^/? \r\n]*)?([^? \r\n]*)(?:\?[^ \r\n]*)? HTTP/1\.[0-9]\r\n"
)
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metric(name: str, text: str, value: float | Sequence[tuple[Mapping[str, str], float]]) -> str:
    """Return one metric in the text format: a counter if its ``name`` ends in ``_total``, or else a gauge.

    ``text``: what it is. ``value``: a number, or one for each set of labels, which are the program's own words, without
    a quotation mark, a backslash or a line break.
    """
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}"]
    for labels, number in [({}, value)] if isinstance(value, (int, float)) else value:
        pairs = ",".join(f'{key}="{label}"' for key, label in labels.items())
        lines.append(f"{name}{{{pairs}}} {number}" if pairs else f"{name} {number}")
    return "\n".join(lines) + "\n"


def build_info(**labels: str) -> str:
    """Return the metric that has the versions as labels, beside ``labels``."""
    from uvloop._version import __version__ as uvloop_version

    python = ".".join(map(str, sys.version_info[:3]))
    labels = {"version": __version__, **labels, "python": python, "uvloop": uvloop_version}
    return metric("nullsmtpd_build_info", "Versions, as labels; the value is 1.", [(labels, 1)])


def _process_metrics() -> list[str]:
    """Return the usual ``process_`` metrics, proc(5). Raises `OSError` without /proc, or without a file descriptor."""
    with open("/proc/self/stat", "rb") as file:  # noqa: PTH123 - as octets: there is no codec left to load
        stat = file.read().rpartition(b")")[2].split()  # from the third field, ``state``, on
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    ticks = os.sysconf("SC_CLK_TCK")
    cpu, started = (int(stat[11]) + int(stat[12])) / ticks, _boot_time() + int(stat[19]) / ticks
    files = len(os.listdir("/proc/self/fd")) - 1  # without the directory itself
    resident = int(stat[21]) * resource.getpagesize()
    return [
        metric("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", cpu),
        metric("process_open_fds", "Number of open file descriptors.", files),
        metric("process_max_fds", "Maximum number of open file descriptors.", soft),
        metric("process_virtual_memory_bytes", "Virtual memory size in bytes.", int(stat[20])),
        metric("process_resident_memory_bytes", "Resident memory size in bytes.", resident),
        metric("process_start_time_seconds", "Start time in seconds since the epoch.", started),
    ]


@functools.cache  # a start time that changed with the clock would stand for a restart
def _boot_time() -> float:
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def serve_metrics(loop: asyncio.AbstractEventLoop, address: Address, collect: Callable[[], list[str]]) -> None:
    """Serve what ``collect`` returns, and the ``process_`` metrics, at ``/metrics``, until the process ends.

    Raises `ListenError`.
    """
    server = _Server(loop, collect)
    for listener in bind(address, socket.SOMAXCONN):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_OCTETS)
        loop.add_reader(listener, server.accept, listener)
        log("metrics", address=local_address(listener))


class _Server:
    """Reads requests and sends responses. No method raises.

    Readers are bounded: when one more connects, the oldest without a complete request is closed. A response is sent and
    the connection closed at once: the send buffer has room for all of it, so a slow reader keeps no descriptor.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, collect: Callable[[], list[str]]) -> None:
        self._loop = loop
        self._collect = collect
        self._timers: dict[socket.socket, asyncio.TimerHandle] = {}  # of the readers, by age

    # Not create_server(): without file descriptors libuv would close connections unanswered, or be busy failing.
    def accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
            connection.setblocking(False)
            self._loop.add_reader(connection, self._on_readable, connection, bytearray())
        except OSError:  # no descriptor or memory: the reader waits in the accept queue; or it has gone
            pause_accepting(self._loop, listener, self.accept)
            return
        if len(self._timers) >= MAX_READERS:
            self._close(next(iter(self._timers)))
        self._timers[connection] = self._loop.call_later(READER_TIMEOUT, self._close, connection)

    def _on_readable(self, connection: socket.socket, request: bytearray) -> None:
        with contextlib.suppress(OSError):  # the reader has gone
            octets = connection.recv(1 << 16)
            request += octets
            head = bytes(request[:MAX_REQUEST_OCTETS])  # all that counts, whatever pieces the request comes in
            if _END_OF_HEAD in head or len(head) == MAX_REQUEST_OCTETS:
                connection.send(self._response(head))
            elif octets:
                return  # the rest of the request is still to come
        self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        self._loop.remove_reader(connection)
        self._timers.pop(connection).cancel()
        connection.close()

    def _response(self, request: bytes) -> bytes:
        parsed = _REQUEST_LINE.match(request)
        method, path = parsed.groups() if parsed else (b"", b"")
        if _END_OF_HEAD not in request:
            status = "431 Request Header Fields Too Large"
        elif not parsed:
            status = "400 Bad Request"
        elif method not in {b"GET", b"HEAD"}:
            status = "405 Method Not Allowed"
        elif path != b"/metrics":
            status = "404 Not Found"
        else:
            status = "200 OK"
        body = f"{status}; metrics are at /metrics.\n"
        if status == "200 OK":
            metrics = self._collect()
            with contextlib.suppress(OSError):  # the other metrics are there without these
                metrics += _process_metrics()
            body = "".join(metrics)
        date = time.strftime("Date: %a, %d %b %Y %H:%M:%S GMT", time.gmtime())  # RFC 9110 §6.6.1
        lines = [f"HTTP/1.1 {status}", date, f"Content-Type: {_CONTENT_TYPE}", f"Content-Length: {len(body)}"]
        if status.startswith("405"):
            lines.append("Allow: GET, HEAD")
        lines += ["Connection: close", "", "" if method == b"HEAD" else body]  # RFC 9110 §9.3.2
        return "\r\n".join(lines).encode("ascii")
