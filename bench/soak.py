"""Whether a server stays right and small: clients of every habit for minutes, then a look at what it lost or kept."""

import asyncio
import contextlib
import signal
import socket
import statistics
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bench import machine, process, report, servers
from bench.client import EARLY
from bench.outcomes import Ending, Outcome, classify

__all__ = ["BEHAVIOURS", "Sample", "Soak", "growth", "soak"]

#: Memory may move this much between the second quarter of the run and the last, in KiB or as a share, whichever is
#: more: an allocator breathes. 300 s at 500 a second are 37,500 connections between the two: 28 octets each.
ALLOWED_KIB = 1024
ALLOWED_SHARE = 0.05

#: Fewer samples than this are a start-up, not a trend.
LEAST_SAMPLES = 16

_LATE = 1.0  # seconds that some clients let pass; less than the 2 s for which nullsmtpd keeps early talkers
_SILENT = 4.0  # more than that: the line is in the client's own buffer by then
_PATIENCE = 10.0
_LET_GO = 15.0  # nullsmtpd: 2 s of linger, 5 s of draining, and room
_BLAST = bytes(1 << 16)
_MOST_OPEN = 8192

_Loop = asyncio.AbstractEventLoop


async def _waits(loop: _Loop, connection: socket.socket) -> bool:
    return True


async def _speaks(loop: _Loop, connection: socket.socket) -> bool:
    await loop.sock_sendall(connection, EARLY)
    return True


async def _speaks_twice(loop: _Loop, connection: socket.socket) -> bool:
    await loop.sock_sendall(connection, EARLY)
    await asyncio.sleep(0.1)
    await loop.sock_sendall(connection, b"MAIL FROM:<>\r\n")
    return True


async def _half_closes(loop: _Loop, connection: socket.socket) -> bool:
    with contextlib.suppress(OSError):  # ENOTCONN: the server has closed too, and what it said is there
        connection.shutdown(socket.SHUT_WR)
    return True


async def _reads_late(loop: _Loop, connection: socket.socket) -> bool:
    await loop.sock_sendall(connection, EARLY)
    await asyncio.sleep(_LATE)
    return True


async def _blasts(loop: _Loop, connection: socket.socket) -> bool:
    await loop.sock_sendall(connection, _BLAST)
    return True


async def _resets(loop: _Loop, connection: socket.socket) -> bool:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


async def _stays_silent(loop: _Loop, connection: socket.socket) -> bool:
    await asyncio.sleep(_SILENT)
    return True


#: What a client does once it is connected; True: it then reads, and must get the whole line.
BEHAVIOURS: dict[str, Callable[[_Loop, socket.socket], Awaitable[bool]]] = {
    "waits its turn": _waits,
    "speaks first": _speaks,
    "speaks twice": _speaks_twice,
    "half-closes": _half_closes,
    "reads late": _reads_late,
    "blasts 64 KiB": _blasts,
    "resets at once": _resets,
    "stays silent": _stays_silent,
}


class Sample(NamedTuple):
    """The server at one moment: seconds since the start, KiB, descriptors."""

    seconds: float
    rss: int
    descriptors: int


@dataclass
class Soak:
    """What came of it. ``failures`` is empty when the server passed."""

    clients: Counter[str] = field(default_factory=Counter)  # by behaviour
    lost: dict[str, Counter[str]] = field(default_factory=dict)  # by behaviour, by what was seen instead
    samples: list[Sample] = field(default_factory=list)
    descriptors: tuple[int, int] | None = None  # before and after
    failures: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    interrupted: bool = False

    def record(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return {
            "clients": dict(self.clients),
            "lost": {behaviour: dict(instead) for behaviour, instead in self.lost.items()},
            "samples": [sample._asdict() for sample in self.samples],
            "descriptors": self.descriptors,
            "failures": self.failures,
            "remarks": self.remarks,
        }

    def lose(self, behaviour: str, instead: str) -> None:
        """Note a client that stayed to read and did not get the whole line."""
        self.lost.setdefault(behaviour, Counter())[instead] += 1


def growth(memory: Sequence[int]) -> int | None:
    """Return by how many KiB the median of the last quarter exceeds that of the second; None: too few to tell."""
    if len(memory) < LEAST_SAMPLES:
        return None
    quarter = len(memory) // 4
    return round(statistics.median(memory[-quarter:]) - statistics.median(memory[quarter : 2 * quarter]))


def soak(arm: servers.Arm, *, duration: float, rate: float) -> Soak:
    """Start a server, send it ``rate`` clients a second of all behaviours for ``duration`` seconds, and judge it."""
    found = Soak()
    machine.raise_nofile()
    with servers.running(arm, cpus=machine.server_cpus()) as server:
        server.settle()
        before = process.descriptors(server.pids)
        try:
            asyncio.run(_run(server, found, duration, rate))
            report.progress("waiting for the server to let go")
            _wait_for(lambda: process.descriptors(server.pids) <= before)
        except KeyboardInterrupt:
            found.interrupted = True
        if server.process.poll() is None:
            found.descriptors = (before, process.descriptors(server.pids))
            server.process.send_signal(signal.SIGTERM)
        status = _status(server)
    report.progress_end()
    _judge(found, status, server.arm.name)
    return found


def _status(server: servers.Server) -> int | None:
    """Return the exit status, or None if it does not end."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return server.process.wait(_PATIENCE)
    return None


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LET_GO
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


async def _run(server: servers.Server, found: Soak, duration: float, rate: float) -> None:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    names = list(BEHAVIOURS)
    begun, number = loop.time(), 0
    next_sample = begun
    while (now := loop.time()) < begun + duration and server.process.poll() is None:
        if now >= next_sample:
            next_sample += max(duration / 60, 0.1)
            seconds = now - begun
            found.samples.append(Sample(seconds, process.memory(server.pids).rss, process.descriptors(server.pids)))
            report.progress(f"{seconds:.0f} of {duration:g} s: {number:,} clients, {sum_lost(found)} lost lines")
        while number < (now - begun) * rate and len(tasks) < _MOST_OPEN:
            task = loop.create_task(_client(loop, server.targets[0], names[number % len(names)], found))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        await asyncio.sleep(0.002)
    if tasks:
        await asyncio.wait(tasks)
    if number < duration * rate * 0.9:
        found.remarks.append(f"{number:,} clients started of {duration * rate:,.0f}: this machine was too slow")


async def _client(loop: _Loop, target: tuple[str, int], behaviour: str, found: Soak) -> None:
    found.clients[behaviour] += 1
    try:
        async with asyncio.timeout(_PATIENCE):
            with socket.socket() as connection:
                connection.setblocking(False)
                await loop.sock_connect(connection, target)
                if await BEHAVIOURS[behaviour](loop, connection):
                    outcome = await _read(loop, connection)
                    if outcome is not Outcome.LINE_FIN:
                        found.lose(behaviour, outcome.value)
    except TimeoutError:
        found.lose(behaviour, Outcome.TIMEOUT.value)
    except OSError as error:  # while it spoke, or before: the client gives up
        found.lose(behaviour, error.strerror or str(error))


async def _read(loop: _Loop, connection: socket.socket) -> Outcome:
    data = b""
    try:
        while more := await loop.sock_recv(connection, 4096):
            data += more
    except OSError:
        return classify(data, Ending.RESET, servers.LINE.encode())
    return classify(data, Ending.FIN, servers.LINE.encode())


def sum_lost(found: Soak) -> int:
    """Return how many clients that stayed to read did not get the whole line."""
    return sum(counts.total() for counts in found.lost.values())


def _judge(found: Soak, status: int | None, name: str) -> None:
    if lost := sum_lost(found):
        found.failures.append(f"{lost} clients that stayed to read did not get the whole line and the FIN")
    if status is None:
        found.failures.append(f"SIGTERM did not end {name} within {_PATIENCE:g} s")
    elif found.descriptors is None:
        found.failures.append(f"{name} ended by itself, with status {status}")
    elif not found.interrupted and found.descriptors[1] > found.descriptors[0]:
        found.failures.append(f"descriptors grew from {found.descriptors[0]} to {found.descriptors[1]}")
    elif status != 0 and name == "nullsmtpd":
        found.failures.append(f"SIGTERM ended it with status {status}")
    memory = [sample.rss for sample in found.samples]
    grown = growth(memory)
    if grown is None:
        found.remarks.append("too short to tell whether memory grows")
    elif grown > max(ALLOWED_KIB, ALLOWED_SHARE * memory[len(memory) // 2]):
        found.failures.append(f"memory grew by {grown} KiB from the second quarter to the last")
