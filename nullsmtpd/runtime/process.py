"""The process of a daemon: its signals, its limit of open files, its event loop."""

import asyncio
import contextlib
import errno
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from nullsmtpd.runtime.log import log

__all__ = ["files_left", "install_signal_handlers", "lower_option", "run", "warn_if_root"]

#: Open files without which there is no event loop: with fewer than ten libuv aborts, or prints its own message.
_MIN_FILES = 12

_TERMINATION = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def files_left(spare: int, needed: int) -> int:
    """Return how many more files may be opened beside ``spare`` ones. Raises `OSError` if fewer than ``needed``."""
    reserved = spare + 16  # a process with an event loop and some listeners
    with contextlib.suppress(OSError):
        reserved = spare + len(os.listdir("/dev/fd")) - 1  # without the directory itself
    return _max_files(reserved + needed) - reserved


def lower_option(option: str, wanted: int, limit: int) -> int:
    """Return an option's value, lowered to the ``limit`` that the limit of open files leaves, and log if it was."""
    if wanted > limit:
        log(f"{option}-lowered", wanted=wanted, to=limit, reason=f"at most {_max_files()} files may be open")
    return min(wanted, limit)


def _max_files(needed: int = 0) -> int:
    """Return the limit of open files. Raises `OSError` if it is below ``needed``."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = sys.maxsize if soft == resource.RLIM_INFINITY else soft
    if limit < needed:
        raise OSError(errno.EMFILE, f"the limit of open files is {limit}; at least {needed} are needed")
    return limit


def warn_if_root(user: str | None) -> None:
    """Log a warning when the process keeps running as root, unless ``user`` was chosen."""
    if os.geteuid() == 0 and user is None:
        log("running-as-root", avoid_with="--user")


def run(serve: Callable[[asyncio.AbstractEventLoop], Coroutine[Any, Any, None]]) -> None:
    """Run a server on an event loop of its own until it returns, with the soft limit of open files at the hard one.

    Raises what it raises, and `OSError` when there can be no event loop. An exception in a callback is logged in one
    line, and the next client is served all the same.
    """
    from uvloop import new_event_loop  # by now the command has imported it, see event_loop.py

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS: a hard limit that may not be used
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _max_files(needed=_MIN_FILES)
    loop: asyncio.AbstractEventLoop = new_event_loop()
    loop.set_exception_handler(
        lambda _, context: log("internal-error", message=context["message"], exception=repr(context.get("exception")))
    )
    with contextlib.closing(serve(loop)) as served:
        loop.run_until_complete(served)
    # The loop stays open: closing it would restore the signals' default actions. And no signal may change the exit
    # status any more: the interpreter resets handlers at its end, but not SIG_IGN.
    for number in (*_TERMINATION, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def install_signal_handlers(loop: asyncio.AbstractEventLoop, log_stats: Callable[[], None]) -> asyncio.Event:
    """Return an event that is set when the process is to shut down.

    SIGTERM, SIGINT, SIGQUIT and the hangup of the controlling terminal set it; a second such signal exits at once with
    status 0. SIGUSR1 calls ``log_stats``. Any other SIGHUP is logged and ignored: there is nothing to reload.
    """
    shutdown = asyncio.Event()
    had_terminal = _has_terminal()

    def on_termination() -> None:
        if shutdown.is_set():  # the second signal: exit now
            log_stats()
            os._exit(0)
        shutdown.set()

    def on_hangup() -> None:
        if had_terminal and not _has_terminal():
            on_termination()
        else:
            log("sighup-ignored", reason="there is nothing to reload")

    for number in _TERMINATION:
        loop.add_signal_handler(number, on_termination)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup(1)
        loop.add_signal_handler(signal.SIGHUP, on_hangup)
    loop.add_signal_handler(signal.SIGUSR1, log_stats)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # those that were blocked during start-up arrive now
    return shutdown


def _has_terminal() -> bool:
    """Return whether the process has a controlling terminal, tty(4)."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError as error:
        return error.errno == errno.EMFILE
    return True
