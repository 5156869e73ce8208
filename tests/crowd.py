"""A crowd of clients in a process of its own, which can run inside a network namespace.

    python -m tests.crowd HOST PORT BEHAVIOUR COUNT CONCURRENCY TIMEOUT

COUNT clients with this behaviour, CONCURRENCY at a time, TIMEOUT seconds each. Prints one JSON object: how many read
the whole line and then the FIN, and what happened to the others.
"""

import asyncio
import json
import resource
import sys
from collections import Counter

from bench.behaviours import one_client


async def _run(address: tuple[str, int], name: str, count: int, concurrency: int, timeout: float) -> Counter[str]:  # noqa: ASYNC109
    turns = asyncio.Semaphore(concurrency)

    async def one() -> str:
        async with turns:
            return await one_client(address, name, timeout)

    return Counter(await asyncio.gather(*(one() for _ in range(count))))


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    host, port, behaviour, count, concurrency, timeout = sys.argv[1:]
    outcomes = asyncio.run(_run((host, int(port)), behaviour, int(count), int(concurrency), float(timeout)))
    sys.stdout.write(f"{json.dumps(outcomes)}\n")
