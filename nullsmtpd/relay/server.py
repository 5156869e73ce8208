"""How does the relay's side start, and how does it shut down?"""

import asyncio
import contextlib
import dataclasses
import os
import select
import socket
from collections.abc import MutableMapping
from functools import partial
from typing import Any

from nullsmtpd.nullmx import Resolver
from nullsmtpd.relay.answers import Answers
from nullsmtpd.relay.counters import Counters, families
from nullsmtpd.relay.options import Options
from nullsmtpd.relay.protocol import Clients, RelayProtocol
from nullsmtpd.relay.unix import UnixListener, bind_unix
from nullsmtpd.runtime.log import log
from nullsmtpd.runtime.privileges import drop_privileges, find_account
from nullsmtpd.runtime.process import (
    install_signal_handlers,
    max_files,
    open_files,
    raise_file_limit,
    require_files,
    run,
    warn_if_root,
)
from nullsmtpd.runtime.sockets import Address, bind, local_address
from nullsmtpd.runtime.systemd import Notifier, inherited_listeners

__all__ = ["serve"]

#: Length of the accept queue, which the kernel limits to net.core.somaxconn.
BACKLOG = 4096

#: File descriptors reserved for what is neither a client nor a DNS query: a log that is reopened, scrapes, clients that
#: are refused.
SPARE_DESCRIPTORS = 16

#: Seconds at shutdown for clients that wait for DNS, or do not read. Container engines kill a process after 10 seconds.
SHUTDOWN_TIMEOUT = 5.0

#: Seconds at shutdown for draining the accept queue; a full one takes a fraction of that. Without this limit a steady
#: stream of new connections would block shutdown.
BACKLOG_DRAIN_TIMEOUT = 1.0


def serve(options: Options, environment: MutableMapping[str, str]) -> None:
    """Answer mail servers until a termination signal.

    Raises `nullsmtpd.runtime.sockets.ListenError` when a socket cannot be opened,
    `nullsmtpd.runtime.privileges.AccountError` and `nullsmtpd.runtime.privileges.PrivilegeError` when privileges cannot
    be dropped, and `OSError` when file descriptors or memory are missing.
    """
    raise_file_limit()
    run(lambda loop: Server(loop, options, environment).serve())


class Server:
    """The parts of a server with ``options``, and their counters."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, options: Options, environment: MutableMapping[str, str]
    ) -> None:
        self._loop = loop
        self._options = options
        self._environment = environment
        self._notifier = Notifier(environment)
        self._unix_listeners: list[UnixListener] = []
        self._counters = Counters()
        limit = _client_limit(options.max_sessions)
        self._clients = Clients(loop, self._counters, limit)
        look_up = Resolver(options.resolver, options.timeout).look_up_mx
        self._answers = Answers(loop, self._counters, look_up, cache_size=options.cache, max_pending=limit)

    async def serve(self) -> None:
        """Serve until a termination signal, and shut down."""
        shutdown = install_signal_handlers(self._loop, self._log_stats)
        try:
            listeners = await self._open_sockets()
            servers = [await self._start(listener) for listener in listeners]
            for listener in listeners:
                log("listening", address=_address(listener))
            self._notifier.notify("READY=1", f"STATUS=Answering on {len(listeners)} sockets")
            self._notifier.start_watchdog(self._loop)
            self._clients.evict_idle()
            await shutdown.wait()
        finally:
            for unix_listener in self._unix_listeners:
                unix_listener.remove()
        self._notifier.notify("STOPPING=1", "STATUS=Waiting for clients to finish")
        await self._drain_backlog(listeners)
        for server in servers:
            server.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_TIMEOUT):
                await self._clients.shut_down()
        self._log_stats()

    async def _open_sockets(self) -> list[socket.socket]:
        """Return the listening sockets, and drop privileges; sockets that were passed in replace --listen."""
        account = find_account(self._options.user, self._options.group)
        inherited = inherited_listeners(self._environment, cork=False, unix=True)
        listeners = inherited or [listener for address in self._options.listen for listener in self._bind(address)]
        if self._options.metrics:
            await self._serve_metrics(bind(self._options.metrics, socket.SOMAXCONN))
        drop_privileges(account)
        warn_if_root(self._options.user)
        return listeners

    def _bind(self, address: Address | str) -> list[socket.socket]:
        if isinstance(address, Address):
            return bind(address, BACKLOG)
        self._unix_listeners.append(bind_unix(address, BACKLOG))
        return [self._unix_listeners[-1].listener]

    async def _serve_metrics(self, listeners: list[socket.socket]) -> None:
        from nullsmtpd.runtime.metrics import serve_metrics

        await serve_metrics(self._loop, listeners, lambda: families(self._gauges(), self._counters))
        for listener in listeners:
            log("metrics", address=local_address(listener))

    async def _start(self, listener: socket.socket) -> asyncio.AbstractServer:
        loop: Any = self._loop  # uvloop's, of which type checkers know too little
        create = loop.create_server
        if listener.family == socket.AF_UNIX:
            # Otherwise the loop removes the file when the server is closed, from Python 3.13 on, also that of a socket
            # which a service manager has passed in and goes on using.
            create = partial(loop.create_unix_server, cleanup_socket=False)
        factory = partial(RelayProtocol, self._answers, self._counters, self._clients, self._options.exceptions)
        # The backlog is passed because the loop calls listen(2) again.
        server: asyncio.AbstractServer = await create(factory, sock=listener, backlog=BACKLOG)
        return server

    async def _drain_backlog(self, listeners: list[socket.socket]) -> None:
        """Let the loop accept the clients that wait in the accept queues: closing those would reset them."""
        poll = select.poll()
        for listener in listeners:
            poll.register(listener, select.POLLIN)
        deadline = self._loop.time() + BACKLOG_DRAIN_TIMEOUT
        while poll.poll(0) and self._loop.time() < deadline:  # noqa: ASYNC110 - each turn of the loop accepts some
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # the turn in which those that were accepted last get their Protocols

    def _gauges(self) -> dict[str, int]:
        return {"talking": len(self._clients), "pending": self._answers.pending, "cached": self._answers.cached}

    def _log_stats(self) -> None:
        log("stats", **self._gauges(), **dataclasses.asdict(self._counters))


def _client_limit(wanted: int) -> int:
    """Return how many clients fit into the limit of open files, each with a DNS query. Raises `OSError`."""
    reserved = open_files() + SPARE_DESCRIPTORS
    require_files(reserved + 2)
    limit = (max_files() - reserved) // 2
    if wanted <= limit:
        return wanted
    log("max-sessions-lowered", wanted=wanted, to=limit, reason=f"at most {max_files()} files may be open")
    return limit


def _address(listener: socket.socket) -> str:
    if listener.family != socket.AF_UNIX:
        return local_address(listener)
    # unix(7): an abstract name begins with a NUL, which is commonly written as "@".
    return "unix:" + os.fsdecode(listener.getsockname()).replace("\0", "@", 1)
