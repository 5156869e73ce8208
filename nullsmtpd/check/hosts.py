"""All addresses of a host, each probed apart and all at the same time."""

import socket
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from nullsmtpd.check.probe import TIMEOUT, Probe, probe, unresolved

__all__ = ["Prober", "check_host", "probe_address", "probe_hosts", "run_all"]

#: `probe`, or a partial of it that takes an address and a port.
Prober = Callable[[str, int], Probe]

#: Threads, each waiting for one server; further addresses are queued.
_MAX_THREADS = 32


async def check_host(
    host: str,
    port: int = 25,
    *,
    mode: str = "close",
    early: bool = False,
    timeout: float = TIMEOUT,  # noqa: ASYNC109 - passed on to each probe
) -> list[Probe]:
    """Return what is seen at each address of ``host``, a name or a literal address: at least one `Probe`.

    A host that refuses mail properly has ``all(seen.is_good for seen in …)``. A name without an address is one `Probe`
    with that fault. The arguments are those of `probe`; the system's resolver has its own timeouts. Blocking calls run
    in threads. Raises `ValueError` for an unknown ``mode``, and for a ``host`` that is not ASCII.
    """
    import asyncio

    return await asyncio.to_thread(probe_hosts, [(host, port)], partial(probe, mode=mode, early=early, timeout=timeout))


def probe_hosts(hosts: Iterable[tuple[str, int]], prober: Prober = probe) -> list[Probe]:
    """Return what is seen at each address of each host, in this order; a literal address has one."""
    tasks: list[Callable[[], Probe]] = []
    for host, port in hosts:
        try:
            tasks += [partial(probe_address, host, address, port, prober) for address in _addresses_of(host)]
        except OSError as error:
            tasks.append(partial(unresolved, host, port, error))
    return run_all(tasks)


def run_all(tasks: Sequence[Callable[[], Probe]]) -> list[Probe]:
    """Return the tasks' results, in this order: up to `_MAX_THREADS` run at once, a single one without a thread."""
    if len(tasks) == 1:
        return [tasks[0]()]
    from concurrent.futures.thread import ThreadPoolExecutor  # slow to import; a health check does without

    try:
        with ThreadPoolExecutor(_MAX_THREADS) as threads:
            return list(threads.map(lambda task: task(), tasks))
    except RuntimeError:  # no thread can be started: run them in turn
        return [task() for task in tasks]


def probe_address(host: str, address: str, port: int, prober: Prober) -> Probe:
    """Return what is seen at one address of ``host``."""
    seen = prober(address, port)
    seen.host = host
    return seen


def _addresses_of(host: str) -> list[str]:
    """Return the addresses of a name in the system's order of preference; a literal address is its own.

    Blocks as long as the system's resolver does. Raises `OSError` when there are none.
    """
    name = host.encode("ascii")  # as octets: a str would be encoded as an IDN, which loads half a megabyte of tables
    try:
        socket.getaddrinfo(name, None, flags=socket.AI_NUMERICHOST)
    except OSError:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(sockaddr[0]) for _, _, _, _, sockaddr in found))
    return [host]  # not the result, which has lost its scope, as in fe80::1%eth0
