"""How is a connection answered, and when is a listening socket asked for more of them?

The path of a client in mode ``close``, from accept to the linger queue, is the function ``answer`` in
`Acceptor._answer_function`. Everything else here is for bursts and for errors.
"""

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Callable
from socket import SocketType
from typing import TYPE_CHECKING

from nullsmtpd.responder.linger import BUFFER_ERRNOS, SEND_FLAGS, SEND_RETRY_DELAY, LingerQueue
from nullsmtpd.runtime.log import RateLimitedLog
from nullsmtpd.runtime.sockets import CAPACITY_PAUSE, CONNECTION_ERRNOS, ListenError, local_address
from nullsmtpd.runtime.tcp import accept_queue_len

if TYPE_CHECKING:
    from nullsmtpd.responder.access_log import AccessLog
    from nullsmtpd.responder.session import Sessions

__all__ = ["BURST_RATE", "POLL_INTERVAL", "Acceptor"]

#: Connections per second from which on a poll timer replaces epoll. A wake-up costs about as much as an answer, so
#: above this rate batches save more than the timer costs (bench/README.md). Below it no client waits for a timer.
BURST_RATE = 2000

#: Seconds between two polls: about eight connections each at `BURST_RATE`, and a delay that is small beside the round
#: trip of a sender.
POLL_INTERVAL = 0.004

#: Connections answered per listener and poll: about 4 ms of work, so that signals and timers stay prompt.
MAX_ACCEPT_BATCH = 256

#: Seconds to pause accepting while every lingering socket is too young to be evicted.
FULL_PAUSE = 0.01

# accept(2): the listening socket was shut down by another process that has it, and never listens again.
_PERMANENT_ERRNOS = frozenset({errno.EINVAL, errno.EBADF, errno.ENOTSOCK})


class Acceptor:
    """Answers every connection on ``listeners``: 521 at connection opening, then the FIN (RFC 7504 §3).

    ``listeners``: bound, listening, non-blocking. ``reply``: the octets of the line. Answered sockets go to ``linger``.
    With ``sessions`` a client gets a session in place of the line, as long as there is room for one. ``on_failure`` is
    called with the `ListenError` when a listener is lost for good.
    """

    def __init__(  # noqa: PLR0913 - what an answer takes
        self,
        loop: asyncio.AbstractEventLoop,
        listeners: list[socket.socket],
        reply: bytes,
        linger: LingerQueue,
        *,
        sessions: "Sessions | None" = None,
        access_log: "AccessLog | None" = None,
        on_failure: Callable[[ListenError], None],
    ) -> None:
        self.send_errors = 0
        self.accept_errors: dict[int, int] = {}
        self.listeners = listeners
        self._loop = loop
        self._reply = reply
        self._linger = linger
        self._on_failure = on_failure
        self._answers = deque((one, self._answer_function(one, sessions, access_log)) for one in listeners)
        self._timer: asyncio.TimerHandle | None = None  # the next poll, or the end of a pause; epoll waits meanwhile
        self._is_polling = False
        self._is_stopped = False
        self._log = RateLimitedLog(loop.time)
        linger.on_sweep = self._on_sweep

    def start(self) -> None:
        """Answer from now on, whenever epoll reports a connection."""
        for listener, answer in self._answers:
            self._loop.add_reader(listener, self._on_readable, answer)

    def stop(self) -> None:
        """Answer only in `accept_batch` from now on: the process shuts down."""
        self._is_stopped = True
        self._stop_waiting()

    def _on_readable(self, answer: Callable[[], bool]) -> None:
        """Close the oldest sockets whose clients have closed, then answer one client.

        The kernel gives the memory of a closed socket, still in the processor's caches, to the next connection: at
        1,000 connections a second that saves a third of the cost of leaving them all to the sweep of the linger queue.
        """
        self._linger.close_head()
        answer()

    def _answer_function(
        self, listener: socket.socket, sessions: "Sessions | None", access_log: "AccessLog | None"
    ) -> Callable[[], bool]:
        """Return the function that answers one client of ``listener``; comments name its system calls."""
        reply, linger, family = self._reply, self._linger, listener.family
        queue, checked, draining, limit = linger.queue, linger.checked, linger.draining, linger.limit
        accept = listener._accept  # type: ignore[attr-defined] # noqa: SLF001 - socket.accept() costs 5 µs more
        on_accept_error, on_send_error, pause = self._on_accept_error, self._on_send_error, self._pause
        socket_type, stream, shut_wr, send_flags = SocketType, socket.SOCK_STREAM, socket.SHUT_WR, SEND_FLAGS

        def answer() -> bool:
            """Answer one client; return whether there may be another."""
            if len(queue) + len(checked) + len(draining) >= limit and not linger.reserve():
                pause(FULL_PAUSE)
                return False
            try:
                descriptor, peer = accept()  # accept4
            except OSError as error:
                return on_accept_error(listener, error)
            connection = socket_type(family, stream, 0, descriptor)  # getsockname: the constructor validates it
            if access_log is not None:
                access_log.record(connection, peer)
            if sessions is not None and sessions.try_add(connection):
                return True
            try:
                connection.send(reply, send_flags)  # sendto: MSG_MORE keeps the line until the FIN
                connection.shutdown(shut_wr)  # shutdown: line and FIN leave as one segment
            except OSError as error:  # the socket lingers nevertheless: the line may be sent later
                on_send_error(connection, error)
            queue.append(connection)
            if linger.timer is None:
                linger.start()
            return True

        return answer

    def _on_accept_error(self, listener: socket.socket, error: OSError) -> bool:
        """Handle every error of accept(2); return False: no client was answered."""
        number = error.errno or 0
        if number == errno.EAGAIN:
            return False  # the client has gone, or another process on the same socket was first
        self.accept_errors[number] = self.accept_errors.get(number, 0) + 1
        if number in _PERMANENT_ERRNOS:
            self._stop_waiting()
            self._on_failure(ListenError(number, "the listening socket was shut down", local_address(listener)))
        elif number not in CONNECTION_ERRNOS:
            self._log_error("accept-paused", error)
            self._linger.shed()
            self._pause(CAPACITY_PAUSE)
        return False

    def _on_send_error(self, connection: SocketType, error: OSError) -> None:
        """Retry when the kernel had no buffer; count a client that has gone (ECONNRESET, EPIPE, ENOTCONN)."""
        if error.errno in BUFFER_ERRNOS:
            self._log_error("send-retry", error)
            self._loop.call_later(SEND_RETRY_DELAY, self._linger.send_last, connection, self._reply)
        else:
            self.send_errors += 1

    def _log_error(self, event: str, error: OSError) -> None:
        name = errno.errorcode.get(error.errno or 0, error.errno)
        self._log(event, name, error=name, reason=error.strerror, lingering=len(self._linger))

    def _pause(self, seconds: float) -> None:
        """Stop accepting, and poll once after ``seconds``; clients wait in the accept queue."""
        if not self._is_stopped:
            self._stop_waiting()
            self._timer = self._loop.call_later(seconds, self._on_timer)

    def _stop_waiting(self) -> None:
        for listener, _ in self._answers:
            self._loop.remove_reader(listener)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_sweep(self, arrivals_per_second: float) -> bool:
        """Start or end polling, by the rate of connections since the last sweep; return whether polling continues."""
        if arrivals_per_second >= BURST_RATE and self._timer is None:
            self._is_polling = True
            self._pause(POLL_INTERVAL)
        elif arrivals_per_second < BURST_RATE / 2:
            self._is_polling = False
        return self._is_polling

    def _on_timer(self) -> None:
        """Answer a batch, then schedule the next poll, or return to epoll."""
        self._timer = None
        try:
            self.accept_batch()
            self._linger.close_head()
        finally:  # even if a bug raised here: without a timer or readers nothing would ever be accepted again
            if self._timer is None:
                if self._is_polling:
                    self._timer = self._loop.call_later(POLL_INTERVAL, self._on_timer)
                else:
                    self._resume_readers()

    def _resume_readers(self) -> None:
        try:
            self.start()
        except OSError as error:  # epoll_ctl(2): ENOMEM, or ENOSPC at fs.epoll.max_user_watches
            self._log_error("epoll-add-failed", error)
            self._pause(CAPACITY_PAUSE)

    def accept_batch(self) -> int:
        """Answer the connections that wait now, up to `MAX_ACCEPT_BATCH` per listener; return how many there were."""
        answered = 0
        for listener, answer in self._answers:
            for _ in range(min(accept_queue_len(listener, MAX_ACCEPT_BATCH), MAX_ACCEPT_BATCH)):
                if not answer():
                    break
                answered += 1
            if self._timer is not None:  # paused, for lack of room: let another listener be first after the pause
                self._answers.rotate(-1)
                break
        return answered
