"""The server from start to end: limits, signals, and who answers: this process alone, or workers."""

import asyncio
import functools
import importlib
import os

from nullsmtpd.cli.responder import MAX_WORKERS, Options
from nullsmtpd.responder.counters import Counters
from nullsmtpd.responder.sockets import announce, open_sockets
from nullsmtpd.responder.worker import Worker
from nullsmtpd.runtime.log import log
from nullsmtpd.runtime.process import ignore_late_signals, raise_file_limit, run, take_signals
from nullsmtpd.runtime.systemd import Notifier

__all__ = ["serve"]


def serve(options: Options) -> None:
    """Answer until SIGTERM or SIGINT.

    Raises `nullsmtpd.runtime.sockets.ListenError` when there is nothing to listen on, `nullsmtpd.runtime.privileges.PrivilegeError`
    when the account cannot be had, `nullsmtpd.cli.arguments.UsageError` when what an option names does not exist, `OSError`
    when the event loop itself lacks descriptors or memory.
    """
    raise_file_limit()
    _import_what_is_needed(options)
    workers = options.workers or _usable_cpus()
    if workers == 1:
        run(functools.partial(_serve_alone, options))
    else:
        from nullsmtpd.responder.workers import serve_with_workers

        serve_with_workers(options, workers)
        ignore_late_signals()


def _usable_cpus() -> int:
    from nullsmtpd.responder.cpus import usable_cpus  # for --workers auto alone: it is half a megabyte

    return min(usable_cpus(), MAX_WORKERS)


def _import_what_is_needed(options: Options) -> None:
    """Import now what these options need: as another user we may not be able to read it (a home directory, say)."""
    modules = {"nullsmtpd.responder.session": options.dialogue, "nullsmtpd.responder.access_log": options.access_log}
    for module in (name for name, needed in modules.items() if needed):
        importlib.import_module(module)
    if options.metrics:
        from nullsmtpd.responder.metrics import require_library

        require_library(options.mode)


async def _serve_alone(options: Options, loop: asyncio.AbstractEventLoop) -> None:
    counters = Counters()
    end = take_signals(loop, lambda: log("stats", **counters.fields()))
    sockets = open_sockets(options)
    worker = Worker(loop, options, counters, sockets.queues[0])
    if sockets.metrics:
        from nullsmtpd.responder.metrics import serve_metrics

        serve_metrics(sockets.metrics, [counters], options.mode)
    notifier = Notifier(os.environ)
    announce(sockets, notifier)
    notifier.keep_alive(loop)
    await end.wait()
    notifier.tell("STOPPING=1", "STATUS=Letting clients finish")
    await worker.finish(for_good=not sockets.inherited)
    log("stats", **counters.fields())
    if sockets.metrics:
        os._exit(0)  # the interpreter's end does not go well with threads that serve HTTP
