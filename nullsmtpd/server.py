"""The server from start to end: limits, signals, and who answers: this process alone, or workers."""

import asyncio
import contextlib
import errno
import importlib
import os
import resource
import signal

from nullsmtpd.counters import Counters
from nullsmtpd.log import log
from nullsmtpd.manager import Notifier
from nullsmtpd.options import Options
from nullsmtpd.sockets import announce, open_sockets
from nullsmtpd.worker import Worker, new_loop

__all__ = ["MIN_DESCRIPTORS", "serve"]

#: Open files without which there is no event loop: with fewer than ten libuv aborts, or complains in its own words.
MIN_DESCRIPTORS = 12


def serve(options: Options) -> None:
    """Answer until SIGTERM or SIGINT.

    Raises `nullsmtpd.listeners.ListenError` when there is nothing to listen on, `nullsmtpd.privileges.PrivilegeError`
    when the account cannot be had, `nullsmtpd.arguments.UsageError` when what an option names does not exist, `OSError`
    when the event loop itself lacks descriptors or memory.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS: a hard limit that it does not let us have
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < MIN_DESCRIPTORS:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    _import_what_is_needed(options)
    workers = options.workers or _usable_cpus()
    if workers == 1:
        _serve_alone(options)
    else:
        from nullsmtpd.workers import serve_with_workers

        serve_with_workers(options, workers)
    # Loops stay open, as closing one gives the signals their default action back, and so does the interpreter's end,
    # but not to those that are ignored: a late one must not change the exit status.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _usable_cpus() -> int:
    from nullsmtpd.cpus import usable_cpus  # for --workers auto alone: it is half a megabyte

    return usable_cpus()


def _import_what_is_needed(options: Options) -> None:
    """Import now what these options need: as another user we may not be able to read it (a home directory, say)."""
    modules = {"nullsmtpd.dialogue": options.dialogue, "nullsmtpd.access": options.access_log}
    for module in (name for name, needed in modules.items() if needed):
        importlib.import_module(module)
    if options.metrics:
        from nullsmtpd.metrics import require_library

        require_library(options.mode)


def _serve_alone(options: Options) -> None:
    loop = new_loop()
    served = _run(loop, options)
    try:
        loop.run_until_complete(served)
    finally:
        served.close()


async def _run(loop: asyncio.AbstractEventLoop, options: Options) -> None:
    counters = Counters()
    end = asyncio.Event()

    def on_end_signal() -> None:
        if end.is_set():  # the second one: no more patience
            log("stats", **counters.fields())
            os._exit(0)
        end.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_end_signal)
    loop.add_signal_handler(signal.SIGUSR1, lambda: log("stats", **counters.fields()))
    sockets = open_sockets(options)
    worker = Worker(loop, options, counters, sockets.queues[0])
    if sockets.metrics:
        from nullsmtpd.metrics import serve_metrics

        serve_metrics(sockets.metrics, [counters], options.mode)
    notifier = Notifier(os.environ)
    announce(sockets, notifier)
    _watch(loop, notifier)
    await end.wait()
    notifier.tell("STOPPING=1", "STATUS=Letting clients finish")
    await worker.finish(for_good=not sockets.inherited)
    log("stats", **counters.fields())


def _watch(loop: asyncio.AbstractEventLoop, notifier: Notifier) -> None:
    """Tell the service manager that the loop turns, as often as it wants to hear it."""
    if seconds := notifier.watchdog_seconds:
        notifier.tell("WATCHDOG=1")
        loop.call_later(seconds, _watch, loop, notifier)
