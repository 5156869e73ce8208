"""Listening sockets: addresses as operators write them, and the sockets bound to them."""

import contextlib
import errno
import re
import socket
import sys
from collections.abc import Callable
from socket import SocketType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import asyncio

__all__ = ["CAPACITY_PAUSE", "CONNECTION_ERRNOS", "MAX_PORT", "Address", "ListenError", "bind", "format_sockaddr"]
__all__ += ["local_address", "parse_address", "parse_target", "pause_accepting"]

# Errors of a host without an address family, or with it disabled.
_NO_SUCH_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})

#: accept(2), "Error handling": a pending error of the connection, not of the listener. The next accept may succeed. Not
#: EPERM, which seccomp(2) filters return: the connection stays in the queue, and epoll would report it again at once.
CONNECTION_ERRNOS = {errno.ECONNABORTED, errno.ECONNRESET, errno.EPROTO, errno.ENOPROTOOPT, errno.ETIMEDOUT}
CONNECTION_ERRNOS |= {errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.EOPNOTSUPP}
if sys.platform == "linux":
    CONNECTION_ERRNOS.add(errno.ENONET)

#: Seconds without accepting when file descriptors or memory have run out, while clients keep their place in the accept
#: queue.
CAPACITY_PAUSE = 0.1

# RFC 1123 §2.1 host names; the underscore is common in container networks.
_HOST_NAME = re.compile(r"(?=.{1,253}\.?$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?")

MAX_PORT = 65535

#: Attempts to find a port that is free in both address families, for ``:0``.
_PORT_TRIES = 20


class Address(NamedTuple):
    """Where to listen. ``host`` is ``None`` for all addresses of both families, else a name or a literal address."""

    host: str | None
    port: int

    def __str__(self) -> str:
        """Write it the way `parse_address` reads it."""
        host = self.host or ""
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


class ListenError(OSError):
    """A socket cannot be opened; ``filename`` is its address as text, ``strerror`` the reason."""


def parse_target(text: str, default_port: int) -> Address:
    """Parse what to connect to: as `parse_address` does, but the port may be left out, and the brackets with it."""
    if text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"
    if text.endswith("]") or ":" not in text:
        text = f"{text}:{default_port}"
    return parse_address(text)


def parse_address(text: str) -> Address:
    """Parse ``HOST:PORT``, ``[v6]:PORT`` or ``:PORT``; with port 0 the kernel chooses.

    Raises `ValueError` with what would be valid, to be read after the text.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        literal, percent, scope = host.partition("%")
        # RFC 4007 §11: an interface, by number or by name; Linux has names of up to 15 octets.
        has_valid_scope = bool(re.fullmatch("(%[A-Za-z0-9_.:-]{1,15})?", percent + scope))
        is_host = has_valid_scope and _is_literal(socket.AF_INET6, literal)
    elif host.rstrip(".").rpartition(".")[2].isdigit():
        is_host = _is_literal(socket.AF_INET, host)
    else:
        is_host = not host or bool(_HOST_NAME.fullmatch(host))
    if not is_host or not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > MAX_PORT:
        raise ValueError(f"is not an address; give HOST:PORT, [v6]:PORT or :PORT, with a port from 0 to {MAX_PORT}")
    return Address(host or None, int(port))


def _is_literal(family: socket.AddressFamily, host: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # ValueError: a NUL, or a character beyond ASCII
        return bool(socket.inet_pton(family, host))
    return False


def local_address(connection: SocketType) -> str:
    """Return the socket's own address, the way `parse_address` reads it."""
    return format_sockaddr(connection.getsockname())


def format_sockaddr(sockaddr: tuple[Any, ...]) -> str:
    """Format a socket address: an IPv4-mapped one as IPv4 (RFC 4291 §2.5.5.2), a scope by name (RFC 4007 §11)."""
    host, port, *more = sockaddr
    if "." in host:
        host = host.removeprefix("::ffff:")
    if more and (scope := more[-1]):
        with contextlib.suppress(OSError):  # an interface removed meanwhile, or no file descriptor left to ask with
            scope = socket.if_indextoname(scope)
        host = f"{host}%{scope}"
    return str(Address(host, port))


def bind(address: Address, backlog: int, *, reuse_port: bool = False) -> list[socket.socket]:
    """Return non-blocking listening sockets, one for each address of ``address.host``; IPv6 sockets take IPv6 only.

    ``backlog``: the length of the accept queue, which the kernel limits to net.core.somaxconn. ``reuse_port``: other
    processes of the same user may bind the same address, and the kernel spreads new connections over them
    (SO_REUSEPORT, socket(7)). A family that this host lacks is left out as long as another remains. Raises
    `ListenError`; nothing stays bound then.
    """
    tries = 1 if address.port else _PORT_TRIES
    while True:
        tries -= 1
        try:
            return _bind_all(address, backlog, reuse_port=reuse_port)
        except OSError as error:
            # Port 0: the port that the kernel chose for the first family may be taken in the second.
            if error.errno != errno.EADDRINUSE or not tries:
                reason = str(error.strerror).partition(" (")[0]  # create_server() appends the address
                raise ListenError(error.errno, reason, str(address)) from error


def _bind_all(address: Address, backlog: int, *, reuse_port: bool) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    refusal = OSError()
    with contextlib.ExitStack() as opened:
        for family, (host, port, *more) in _resolve(address):
            same_port = listeners[0].getsockname()[1] if listeners else port
            sockaddr = (host, same_port, *more)
            try:
                listener = socket.create_server(sockaddr, family=family, backlog=backlog, reuse_port=reuse_port)
            except OSError as error:
                if error.errno not in _NO_SUCH_FAMILY:
                    raise
                refusal = error
            else:
                listener.setblocking(False)
                listeners.append(opened.enter_context(listener))
        if not listeners:
            raise refusal
        opened.pop_all()
    return listeners


def _resolve(address: Address) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    """Return each family and socket address; those of IPv6 have flow and scope after the port."""
    host, port = address
    if host is None:
        return [(socket.AF_INET, ("0.0.0.0", port)), (socket.AF_INET6, ("::", port))]  # noqa: S104 - what :PORT asks for
    # As octets: a str would be encoded as an IDN, which loads half a megabyte of tables.
    found = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in found))


def pause_accepting(
    loop: "asyncio.AbstractEventLoop", listener: socket.socket, accept: Callable[[socket.socket], object]
) -> None:
    """Stop calling ``accept``, the reader of ``listener``, for `CAPACITY_PAUSE` or until epoll has room for it."""

    def resume() -> None:
        try:
            if listener.fileno() >= 0:  # not closed meanwhile
                loop.add_reader(listener, accept, listener)
        except OSError:  # epoll_ctl(2): ENOMEM, or ENOSPC at fs.epoll.max_user_watches
            pause_accepting(loop, listener, accept)

    loop.remove_reader(listener)
    loop.call_later(CAPACITY_PAUSE, resume)
