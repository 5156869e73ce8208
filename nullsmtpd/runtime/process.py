"""What every server of ours asks of its process: open files, an event loop, and an end that no late signal spoils."""

import asyncio
import contextlib
import errno
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from nullsmtpd.runtime.log import log

__all__ = [
    "MIN_FILES",
    "ignore_late_signals",
    "max_files",
    "new_loop",
    "open_files",
    "raise_file_limit",
    "run",
    "take_signals",
]

#: Open files without which there is no event loop: with fewer than ten libuv aborts, or complains in its own words.
MIN_FILES = 12


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard one. Raises `OSError` where that is less than `MIN_FILES`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS: a hard limit that it does not let us have
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if max_files() < MIN_FILES:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def max_files() -> int:
    """Return how many files may be open at once; `sys.maxsize` without a limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def open_files() -> int:
    """Return how many files are open now."""
    directory = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    try:
        return len(os.listdir(directory))
    except OSError:
        return 16  # a process with a loop and some listeners; whoever counts on it leaves some to spare


def new_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop that logs a mistake of ours in one line; the next client is served all the same."""
    loop = uvloop.new_event_loop()
    loop.set_exception_handler(_on_internal_error)
    return loop


def _on_internal_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    log("internal-error", message=context.get("message"), exception=repr(context.get("exception")))


def run(serve: Callable[[asyncio.AbstractEventLoop], Coroutine[Any, Any, None]]) -> None:
    """Run a server to its end on a loop of its own. Raises what it raises, and `OSError` when there can be no loop."""
    loop = new_loop()
    served = serve(loop)
    try:
        loop.run_until_complete(served)
    finally:
        served.close()
    # The loop stays open: closing it would give the signals their default action back.
    ignore_late_signals()


def take_signals(loop: asyncio.AbstractEventLoop, log_stats: Callable[[], None]) -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set; at a second one the process ends at once, SIGUSR1 logs the stats."""
    end = asyncio.Event()

    def on_end_signal() -> None:
        if end.is_set():  # the second one: no more patience
            log_stats()
            os._exit(0)
        end.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_end_signal)
    loop.add_signal_handler(signal.SIGUSR1, log_stats)
    return end


def ignore_late_signals() -> None:
    """Let no signal change the exit status any more: at its end the interpreter resets handlers, but no ignoring."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
