"""The relay's side from start to end: limits, sockets, signals, and what is in between left to the sessions."""

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import MutableMapping
from functools import partial

from nullsmtpd.cli.relay import Options
from nullsmtpd.nullmx import look_up_mx
from nullsmtpd.relay.answers import Answers
from nullsmtpd.relay.counters import Counters
from nullsmtpd.relay.local import LocalListener, bind_local
from nullsmtpd.relay.protocol import MAX_DRAINS, RelayProtocol, Sessions
from nullsmtpd.runtime.log import log
from nullsmtpd.runtime.privileges import drop_privileges, find_account
from nullsmtpd.runtime.process import install_signal_handlers, max_files, raise_file_limit, run, warn_if_root
from nullsmtpd.runtime.sockets import Address, bind, local_address
from nullsmtpd.runtime.systemd import Notifier, inherited_listeners

__all__ = ["serve"]

#: What listen(2) gets, as by default in the responder; the kernel lowers it to net.core.somaxconn.
BACKLOG = 4096

#: Descriptors for what is neither a client nor a question: the loop's own, the listeners, a log, clients not let in.
SPARE_DESCRIPTORS = 64

#: How long clients that wait for DNS, or do not read, may keep the process at its end: container engines kill it
#: after 10 seconds.
END_SECONDS = 5.0

#: How long clients that come while the server ends are let in: a full backlog takes a fraction of that, and a port
#: where ever more come has to close all the same.
BACKLOG_SECONDS = 1.0

# Turns of the loop that a client takes: it is accepted in one, has its Protocol in the next, and is read in the third.
_TURNS = 3


def serve(options: Options, environment: MutableMapping[str, str]) -> None:
    """Answer until SIGTERM or SIGINT.

    Raises `nullsmtpd.runtime.sockets.ListenError` when there is nothing to listen on, `nullsmtpd.runtime.privileges.PrivilegeError`
    when the account cannot be had, `nullsmtpd.cli.arguments.UsageError` when there is no such account, `OSError` when the
    event loop itself lacks descriptors or memory.
    """
    raise_file_limit()
    run(lambda loop: _Server(loop, options, environment).run())


class _Server:
    def __init__(
        self, loop: asyncio.AbstractEventLoop, options: Options, environment: MutableMapping[str, str]
    ) -> None:
        self._loop = loop
        self._options = options
        self._environment = environment
        self._notifier = Notifier(environment)
        self._local: list[LocalListener] = []
        self._counters = Counters()
        limit = _session_limit(options.max_sessions)
        self._sessions = Sessions(loop, self._counters, limit)
        look_up = partial(look_up_mx, resolver=options.resolver, timeout=options.timeout)
        self._answers = Answers(
            loop, self._counters, look_up, timeout=options.timeout, entries=options.cache, limit=limit
        )

    async def run(self) -> None:
        end = install_signal_handlers(self._loop, self._log_stats)
        try:
            listeners = self._listeners()
            servers = await self._start(listeners)
            await end.wait()
        finally:
            for local in self._local:
                local.remove()
        self._notifier.notify("STOPPING=1", "STATUS=Letting clients finish")
        await self._let_in(listeners)
        for server in servers:
            server.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._sessions.finish()
        self._log_stats()

    async def _let_in(self, listeners: list[socket.socket]) -> None:
        """Have the loop accept who waits in the backlogs, and read what they ask: a close would reset them."""
        backlogs = select.poll()
        for listener in listeners:
            backlogs.register(listener, select.POLLIN)
        until = self._loop.time() + BACKLOG_SECONDS
        while backlogs.poll(0) and self._loop.time() < until:  # noqa: ASYNC110 - each turn of the loop accepts some
            await asyncio.sleep(0)
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    async def _start(self, listeners: list[socket.socket]) -> list[asyncio.AbstractServer]:
        servers = [await self._serve(listener) for listener in listeners]
        for listener in listeners:
            log("listening", address=_own_address(listener))
        self._notifier.notify("READY=1", f"STATUS=Answering on {len(listeners)} sockets")
        self._notifier.start_watchdog(self._loop)
        self._sessions.look_for_idle()
        return servers

    def _listeners(self) -> list[socket.socket]:
        """Return the sockets to listen on, as the account to be; those that were passed to us replace --listen."""
        account = find_account(self._options.user, self._options.group)
        inherited = inherited_listeners(self._environment, cork=False, unix=True)
        listeners = inherited or [one for place in self._options.listen for one in self._bind(place)]
        drop_privileges(account)
        warn_if_root(self._options.user)
        return listeners

    def _bind(self, place: Address | str) -> list[socket.socket]:
        if isinstance(place, Address):
            return bind(place, BACKLOG)
        self._local.append(bind_local(place, BACKLOG))
        return [self._local[-1].listener]

    async def _serve(self, listener: socket.socket) -> asyncio.AbstractServer:
        """Serve clients; the backlog is passed because the loop calls listen(2) again, with 100 if it is not told."""
        create = self._loop.create_unix_server if listener.family == socket.AF_UNIX else self._loop.create_server
        factory = partial(RelayProtocol, self._answers, self._counters, self._sessions)
        return await create(factory, sock=listener, backlog=BACKLOG)

    def _log_stats(self) -> None:
        levels = {"talking": len(self._sessions), "asking": self._answers.asking, "cached": self._answers.cached}
        log("stats", **levels, **self._counters.fields())


def _session_limit(wanted: int) -> int:
    """Lower the number of clients to what the limit of open files leaves: each may need one for its question too."""
    left = (max_files() - SPARE_DESCRIPTORS - MAX_DRAINS) // 2
    if wanted <= left:
        return wanted
    log("max-sessions-lowered", wanted=wanted, to=max(1, left), because=f"at most {max_files()} files may be open")
    return max(1, left)


def _own_address(listener: socket.socket) -> str:
    if listener.family != socket.AF_UNIX:
        return local_address(listener)
    return "unix:" + os.fsdecode(listener.getsockname()).replace(
        "\0", "@", 1
    )  # unix(7): an abstract name begins with a NUL
