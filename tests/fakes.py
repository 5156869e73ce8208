"""Stand-ins for what a test cannot wait for or provoke: an event loop with its own clock, a listener, transports."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from functools import partial
from socket import SocketType
from typing import Any, cast

__all__ = ["FakeConnection", "FakeLoop", "FakeTransport", "FaultyListener"]


class FakeLoop:
    """An event loop reduced to its clock and its readers: timers run when `advance` passes them.

    The clock is uvloop's: it counts milliseconds, and delays are rounded to them. ``readers``: the callbacks by
    listener, for a test to call.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.readers: dict[object, Callable[[], object]] = {}
        self._timers: list[tuple[float, asyncio.Handle]] = []

    @property
    def timers(self) -> list[tuple[float, asyncio.Handle]]:
        """Return what is to be called, and when."""
        return [timer for timer in self._timers if not timer[1].cancelled()]

    @property
    def until_next(self) -> float:
        """Return the seconds until the next timer, of which there must be one."""
        return round(min(due for due, _ in self.timers) - self.now, 3)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Make it the loop that `asyncio.get_running_loop` returns."""
        asyncio._set_running_loop(self.as_loop())
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    def as_loop(self) -> asyncio.AbstractEventLoop:
        return cast("asyncio.AbstractEventLoop", self)

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self.as_loop())
        delay = max(round(delay, 3), 0.001)  # libuv: a timer that is due at once waits until the clock has moved
        self._timers.append((round(self.now + delay, 3), handle))
        return handle

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> asyncio.Handle:
        return self.call_later(when - self.now, callback, *args)

    def add_reader(self, listener: object, callback: Callable[..., object], *args: Any) -> None:  # noqa: ANN401
        self.readers[listener] = partial(callback, *args)

    def remove_reader(self, listener: object) -> None:
        self.readers.pop(listener, None)

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Exception]) -> None:
        raise context["exception"]

    def advance(self, seconds: float) -> None:
        """Let time pass, timer by timer."""
        end = round(self.now + seconds, 3)
        while due := [timer for timer in self.timers if timer[0] <= end]:
            timer = min(due, key=lambda timer: timer[0])
            self._timers.remove(timer)
            self.now = max(self.now, timer[0])
            timer[1]._run()
        self.now = end


class FakeConnection:
    """A connection that was answered and half-closed; its client is the test.

    ``was_reset``: it was closed with unread input, for which the kernel sends RST.
    """

    def __init__(self) -> None:
        self.unread = 0
        self.looks = 0  # at whether the client has closed
        self.is_closed = False
        self.was_reset = False
        self._has_ended = False

    def as_socket(self) -> SocketType:
        return cast("SocketType", self)

    def client_sends(self, octets: int) -> None:
        self.unread += octets

    def client_closes(self) -> None:
        self._has_ended = True

    def getsockname(self) -> tuple[str, int]:
        return ("192.0.2.25", 25)

    def getsockopt(self, level: int, option: int, length: int) -> bytes:
        """Return the first octet of TCP_INFO: TCP_CLOSE once the client has closed too, else TCP_FIN_WAIT2."""
        assert not self.is_closed
        self.looks += 1
        return b"\x07" if self._has_ended else b"\x05"

    def send(self, octets: bytes, flags: int) -> int:
        return len(octets)

    def shutdown(self, how: int) -> None:
        assert not self.is_closed

    def recv(self, size: int, flags: int = 0) -> bytes:
        assert not self.is_closed
        if not self.unread and not self._has_ended:
            raise BlockingIOError
        octets = b"x" * min(size, self.unread)
        if not flags & socket.MSG_PEEK:
            self.unread -= len(octets)
        return octets

    def recv_into(self, buffer: bytearray, size: int = 0, flags: int = 0) -> int:
        return len(self.recv(size or len(buffer), flags))

    def close(self) -> None:
        assert not self.is_closed, "closed twice"
        self.is_closed = True
        self.was_reset = self.unread > 0 and not self._has_ended


class FaultyListener(socket.socket):
    """A listening socket whose next accepts fail with the errors in ``faults``; ``calls`` counts the accepts."""

    calls = 0

    def __init__(self, *given: Any, **named: Any) -> None:  # noqa: ANN401 - as the base class
        super().__init__(*given, **named)
        self.faults: list[int] = []

    def _accept(self) -> tuple[int, object]:
        self.calls += 1
        if self.faults:
            raise OSError(self.faults.pop(0), "injected")
        accepted: tuple[int, object] = super()._accept()  # type: ignore[misc]
        return accepted


class FakeTransport(asyncio.Transport):
    """Notes what a Protocol asks of it; ``write`` fails with ``error``. ``protocol``: the one that has taken over."""

    def __init__(self, error: Exception | None = None, *, can_eof: bool = True) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.written = b""
        self.protocol: asyncio.BaseProtocol | None = None
        self._error = error
        self._can_eof = can_eof

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.calls.append(f"limits {high}")

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def write(self, data: Any) -> None:  # noqa: ANN401 - the standard library's own signature
        self.calls.append("write")
        if self._error:
            raise self._error
        self.written += bytes(data)

    def can_write_eof(self) -> bool:
        return self._can_eof

    def write_eof(self) -> None:
        self.calls.append("write_eof")
        if not self._can_eof:
            raise NotImplementedError

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("abort")
