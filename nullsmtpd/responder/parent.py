"""The parent of several processes: it only watches, replaces the dead, and passes on what it is told.

It has no event loop, as none survives a fork. Every socket stays open in it, so what waits for a process that has died
waits for the next one.
"""

import os
import select
import signal
import time
from collections.abc import Callable

from nullsmtpd.responder.counters import Counters
from nullsmtpd.runtime.log import log
from nullsmtpd.runtime.systemd import Notifier

__all__ = ["FIRST_DELAY", "MAX_DELAY", "MAX_MISSED", "SHORT_LIFE", "Child", "Parent"]

#: A process that lived for longer than this many seconds is replaced at once: what ended it is not in its start.
SHORT_LIFE = 1.0

#: Seconds until one that lived shorter is replaced, doubled each time that its successor does no better. Clients in its
#: queue wait meanwhile, and a sender waits five minutes for a greeting (RFC 5321 §4.5.3.2.1).
FIRST_DELAY = 0.1
MAX_DELAY = 5.0

#: Looks of the watchdog without a sign of life in between, after which a process counts as hung. Not one: after
#: SIGCONT, or on a host that was suspended, the parent may look before the others had their turn.
MAX_MISSED = 2

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD)


class Child:
    """The place of one process, and how the one that has it now is doing. Times are monotonic seconds.

    ``work`` is what it does, from its start until the descriptor that it is given becomes readable. ``answers``: it
    answers clients, so it shows by ``counters.heartbeats`` that it is alive, and its queue is not left behind.
    """

    def __init__(self, name: str, work: Callable[[int], None], counters: Counters, *, answers: bool = True) -> None:
        self.name = name
        self.work = work
        self.counters = counters
        self.answers = answers
        self.pid = 0  # 0: nobody has the place
        self.started = 0.0
        self.delay = 0.0
        self.due = 0.0
        self.heartbeats = 0
        self.missed = 0
        self.is_done = False  # the last one has ended as it should, with nobody left in its queue


class Parent:
    """Watches ``children``, to be added before `start`. ``on_stats`` is called for SIGUSR1, and at the end.

    ``patience``: how many seconds they may take to end. From the constructor on it has the signals of the process.
    """

    def __init__(self, notifier: Notifier, on_stats: Callable[[], None], patience: float) -> None:
        self.children: list[Child] = []
        self._notifier = notifier
        self._on_stats = on_stats
        self._patience = patience
        self._signals = _Signals()
        # Nobody reads from it: it is readable once the parent has told all to end, or has died.
        self._end, self._end_writer = os.pipe()
        self._watchdog_due = 0.0
        self._is_ending = False

    def start(self) -> None:
        """Start every child. Raises `OSError` when there is no memory or no process left."""
        for child in self.children:
            self._fork(child)

    def watch(self) -> None:
        """Keep all places taken until SIGTERM or SIGINT; then let all finish, or, at a second signal, end them."""
        while not self._is_told_to_end(self._idle_seconds()):
            self._bury()
            self._replace()
            self._look_after_watchdog()
        self._notifier.tell("STOPPING=1", "STATUS=Letting clients finish")
        self._finish()
        self._on_stats()

    def _is_told_to_end(self, seconds: float | None) -> bool:
        """Wait for a signal, for so many seconds at most."""
        signals = self._signals.wait(seconds)
        if signal.SIGUSR1 in signals:
            self._on_stats()
        return bool(signals & {signal.SIGTERM, signal.SIGINT})

    def _idle_seconds(self) -> float | None:
        """Return how long there is nothing to do but to wait for signals; ``None``: for ever."""
        dues = [child.due for child in self.children if not child.pid]
        if self._notifier.watchdog_seconds:
            dues.append(self._watchdog_due)
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def _bury(self) -> None:
        """Take note of who has died, and of when the successor is due."""
        for child in self.children:
            pid, status = os.waitpid(child.pid, os.WNOHANG) if child.pid else (0, 0)
            if not pid:
                continue
            child.pid = 0
            child.is_done = self._is_ending and status == 0
            child.counters.forget_levels()
            lived = time.monotonic() - child.started
            child.delay = _longer(child.delay) if lived < SHORT_LIFE else 0.0
            child.due = time.monotonic() + child.delay
            if status or not self._is_ending:
                log("process-ended", name=child.name, pid=pid, status=_status(status), after=f"{lived:.3f}")

    def _replace(self) -> None:
        for child in self.children:
            if not child.pid and child.due <= time.monotonic() and self._try_fork(child):
                child.counters.worker_restarts += child.answers

    def _try_fork(self, child: Child) -> bool:
        """Fork; where no process or no memory is left, say so, and try again later."""
        try:
            self._fork(child)
        except OSError as error:
            child.delay = _longer(child.delay)
            child.due = time.monotonic() + child.delay
            log("process-not-started", name=child.name, reason=error.strerror, again_in=child.delay)
            return False
        return True

    def _look_after_watchdog(self) -> None:
        """Tell the service manager that we are here; kill who does not turn any more, so that it is replaced."""
        seconds, now = self._notifier.watchdog_seconds, time.monotonic()
        if not seconds or now < self._watchdog_due:
            return
        self._watchdog_due = now + seconds
        self._notifier.tell("WATCHDOG=1")
        for child in self.children:
            if not (child.pid and child.answers):
                continue
            child.missed = child.missed + 1 if child.heartbeats == child.counters.heartbeats else 0
            child.heartbeats = child.counters.heartbeats
            if child.missed >= MAX_MISSED:
                log("process-hung", name=child.name, pid=child.pid)
                os.kill(child.pid, signal.SIGKILL)

    def _finish(self) -> None:
        self._bury()
        self._is_ending = True
        os.write(self._end_writer, b"\0")  # closing it is not enough: a child that hangs since its fork has a copy
        os.close(self._end_writer)
        self._end_writer = -1
        last = time.monotonic() + self._patience
        heirs = [child for child in self.children if child.answers]  # who dies now may have one successor
        while True:
            for child in [child for child in heirs if not child.pid and not child.is_done]:
                heirs.remove(child)
                self._try_fork(child)  # somebody has to answer those who wait in its queue
            if not any(child.pid for child in self.children):
                return
            if self._is_told_to_end(max(0.0, last - time.monotonic())) or time.monotonic() >= last:
                heirs.clear()
                last = time.monotonic() + self._patience
                for child in self.children:
                    if child.pid:
                        os.kill(child.pid, signal.SIGKILL)
            self._bury()

    def _fork(self, child: Child) -> None:
        # No signal may reach the child while it has our handlers: it would seem to be the parent's.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                self._live(child)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        child.pid = pid
        child.started = time.monotonic()
        child.missed = 0

    def _live(self, child: Child) -> None:
        """Be the child, from the fork to the end of the process."""
        status = 1
        try:
            self._signals.leave_to_parent()
            if self._end_writer >= 0:
                os.close(self._end_writer)
            child.counters.process = os.getpid()
            child.work(self._end)
            status = 0
        except Exception as error:  # noqa: BLE001 - whatever it was: one line, and the parent sees to the rest
            log("process-failed", name=child.name, error=repr(error))
        finally:
            os._exit(status)


class _Signals:
    """The signals of this process, as something to wait for."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        for descriptor in (self._reader, self._writer):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda _number, _frame: None)  # the number is in the pipe already

    def wait(self, seconds: float | None) -> set[int]:
        """Return the signals that came, none when none did in so many seconds; ``None`` waits for ever."""
        if not select.select([self._reader], [], [], seconds)[0]:
            return set()
        return set(os.read(self._reader, select.PIPE_BUF))

    def leave_to_parent(self) -> None:
        """Have none any more, in a child: a signal for a whole group reaches the parent too, and its word counts.

        Only the parent knows whether a socket is to be closed for good.
        """
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        os.close(self._reader)
        os.close(self._writer)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _longer(delay: float) -> float:
    return min(max(2 * delay, FIRST_DELAY), MAX_DELAY)


def _status(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    try:
        return signal.Signals(-code).name if code < 0 else str(code)
    except ValueError:  # a real-time signal has no name
        return str(code)
