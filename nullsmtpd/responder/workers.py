"""Several processes that answer: what each of them gets, and what it does with it."""

import asyncio
import functools
import mmap
import os
import select
import socket

from nullsmtpd.cli.responder import Options
from nullsmtpd.responder.counters import Counters
from nullsmtpd.responder.parent import Child, Parent
from nullsmtpd.responder.sockets import announce, open_sockets
from nullsmtpd.responder.worker import Worker
from nullsmtpd.runtime.log import log
from nullsmtpd.runtime.process import new_loop, open_files
from nullsmtpd.runtime.systemd import Notifier

__all__ = ["END_SECONDS", "serve_with_workers"]

#: Seconds that a worker may take to end beyond the linger time; one that hangs is killed then.
END_SECONDS = 5.0


def serve_with_workers(options: Options, count: int) -> None:
    """Answer in ``count`` processes until SIGTERM or SIGINT. Raises as `nullsmtpd.responder.server.serve` does."""
    _warm_up(options)
    *of_workers, of_metrics, own = all_counters = _shared_counters(count + 2)
    notifier = Notifier(os.environ)
    parent = Parent(
        notifier,
        on_stats=lambda: log("stats", **Counters.total(all_counters).fields()),
        patience=options.linger + END_SECONDS,
    )
    sockets = open_sockets(options, count)
    beat_every = notifier.watchdog_seconds and notifier.watchdog_seconds / 2
    for number, (listeners, counters) in enumerate(zip(sockets.queues, of_workers, strict=True), 1):
        work = functools.partial(
            _answer,
            options,
            counters,
            listeners,
            for_good=not sockets.inherited,
            beat_every=beat_every,
            explain=number == 1,
        )
        parent.children.append(Child(f"worker-{number}", work, counters))
    if sockets.metrics:
        work = functools.partial(_serve_metrics, sockets.metrics, all_counters, of_metrics, options.mode)
        parent.children.append(Child("metrics", work, of_metrics, answers=False))
    own.process, own.descriptors = os.getpid(), open_files()
    parent.start()
    announce(sockets, notifier)
    parent.watch()


def _warm_up(options: Options) -> None:
    """Serve nobody for a moment: what the first run of the code writes to memory is shared by all, 0.2 MB a worker."""
    loop = new_loop()

    async def serve_nobody() -> None:
        Worker(loop, options, Counters(), [], explain=False)
        await asyncio.sleep(0)

    loop.run_until_complete(serve_nobody())
    loop.close()


def _shared_counters(count: int) -> list[Counters]:
    """Return counters in memory that every process forked from now on has in common."""
    memory = memoryview(mmap.mmap(-1, count * Counters.SIZE))
    return [Counters(memory[offset : offset + Counters.SIZE]) for offset in range(0, len(memory), Counters.SIZE)]


def _answer(  # noqa: PLR0913 - what a process is made of
    options: Options,
    counters: Counters,
    listeners: list[socket.socket],
    end: int,
    *,
    for_good: bool,
    beat_every: float | None,
    explain: bool,
) -> None:
    """Be a worker until ``end`` is readable. ``beat_every``: how often to show that the loop turns, in seconds.

    ``for_good`` as for `Worker.finish`, ``explain`` as for `Worker`.
    """
    loop = new_loop()
    ended = asyncio.Event()

    def on_end() -> None:
        loop.remove_reader(end)
        ended.set()

    def beat() -> None:
        if beat_every:
            counters.heartbeats += 1
            loop.call_later(beat_every, beat)

    async def run() -> None:
        loop.add_reader(end, on_end)
        worker = Worker(loop, options, counters, listeners, explain=explain)
        beat()
        await ended.wait()
        await worker.finish(for_good=for_good)

    loop.run_until_complete(run())


def _serve_metrics(
    listeners: list[socket.socket], counters: list[Counters], own: Counters, mode: str, end: int
) -> None:
    """Be the process that serves the numbers of the others, until ``end`` is readable."""
    from nullsmtpd.responder.metrics import serve_metrics

    own.descriptors = open_files()
    serve_metrics(listeners, counters, mode)
    select.select([end], [], [])
