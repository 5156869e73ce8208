"""A host and its addresses, each asked apart and all at the same time."""

import socket
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from nullsmtpd.check.outcome import Probe
from nullsmtpd.check.probe import TIMEOUT, probe, unresolved

__all__ = ["Ask", "addresses_of", "check_host", "probe_address", "probe_hosts", "run_at_once"]

#: `probe`, or a partial of it: what takes an address and a port.
Ask = Callable[[str, int], Probe]

#: Threads, each waiting for one server: more addresses than that wait their turn.
_AT_ONCE = 32


async def check_host(
    host: str,
    port: int = 25,
    *,
    mode: str = "close",
    early: bool = False,
    timeout: float = TIMEOUT,  # noqa: ASYNC109 - one for each address, kept where it is asked
) -> list[Probe]:
    """Return what is seen at each address of ``host``, a name or a literal address: at least one `Probe`.

    A host that refuses mail properly has ``all(seen.is_good for seen in …)``. A name without an address is one `Probe`
    that says so. The arguments are those of `probe`; the system's resolver takes the time that it takes. It all runs in
    threads. Raises `ValueError` for a ``mode`` that is none, and for a ``host`` that is not ASCII.
    """
    import asyncio

    ask = partial(probe, mode=mode, early=early, timeout=timeout)
    return await asyncio.to_thread(probe_hosts, [(host, port)], ask)


def probe_hosts(hosts: Iterable[tuple[str, int]], ask: Ask = probe) -> list[Probe]:
    """Return what is seen at each address of each host, in this order; a literal address has one."""
    return run_at_once([task for host, port in hosts for task in _tasks(host, port, ask)])


def run_at_once(tasks: Sequence[Callable[[], Probe]]) -> list[Probe]:
    """Return what each task returns, in this order: so many threads as `_AT_ONCE` allows, none for a single task."""
    if len(tasks) == 1:
        return [tasks[0]()]
    from concurrent.futures.thread import ThreadPoolExecutor  # takes long to load; a health check does without

    try:
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            return list(threads.map(lambda task: task(), tasks))
    except RuntimeError:  # no thread can be had: one after the other
        return [task() for task in tasks]


def _tasks(host: str, port: int, ask: Ask) -> list[Callable[[], Probe]]:
    try:
        return [partial(probe_address, host, address, port, ask) for address in addresses_of(host)]
    except OSError as error:
        return [partial(unresolved, host, port, error)]


def probe_address(host: str, address: str, port: int, ask: Ask) -> Probe:
    """Return what is seen at one address of ``host``."""
    seen = ask(address, port)
    seen.host = host
    return seen


def addresses_of(host: str) -> list[str]:
    """Return the addresses of a name in the system's order of preference; a literal address is its own.

    Blocks as long as the system's resolver does. Raises `OSError` when there are none.
    """
    name = host.encode("ascii")  # as octets: a str would be encoded as an IDN, which loads half a megabyte of tables
    try:
        socket.getaddrinfo(name, None, flags=socket.AI_NUMERICHOST)
    except OSError:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(sockaddr[0]) for _, _, _, _, sockaddr in found))
    return [host]  # not what was found: that has lost its scope, as in fe80::1%eth0
