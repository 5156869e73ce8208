"""Where to listen: addresses as operators write them, and the sockets bound to them."""

import errno
import re
import socket
from socket import SocketType
from typing import Any, NamedTuple

from nullsmtpd.runtime.tcp import cork_replies

__all__ = ["Address", "ListenError", "bind", "format_address", "own_address", "parse_address", "share", "shown_address"]

_WAYS_OUT = {
    errno.EADDRINUSE: "stop the program that has it, or choose another port",
    errno.EACCES: "choose a port above 1023, grant CAP_NET_BIND_SERVICE, or use socket activation",
    errno.EADDRNOTAVAIL: "this host does not have that address; give one of its own, or :PORT for all of them",
    errno.EAFNOSUPPORT: "this host does not have that address family; give an address of another, or :PORT",
}

# What a host without a family, or with it switched off, answers.
_NO_SUCH_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})

# RFC 1123 §2.1 host names; the underscore is common in container networks.
_HOST_NAME = re.compile(r"(?=.{1,253}\.?$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?")

# RFC 4007 §11: an interface, by number or by name; Linux has names of up to 15 octets.
_SCOPE = re.compile(r"[A-Za-z0-9_.:-]{1,15}")

_MAX_PORT = 65535

#: How often to look for a port that is free in both address families, for ``:0``.
_PORT_TRIES = 20


class Address(NamedTuple):
    """Where to listen. ``host`` is ``None`` for all addresses of both families, else a name or a literal address."""

    host: str | None
    port: int

    def __str__(self) -> str:
        """Write it the way `parse_address` reads it."""
        return format_address(self.host or "", self.port)


class ListenError(Exception):
    """A socket cannot be had; the message is one line with the address, the reason and the way out."""


def parse_address(text: str) -> Address:
    """Parse ``HOST:PORT``, ``[v6]:PORT`` or ``:PORT``; port 0 lets the kernel choose.

    Raises `ValueError`, which says what is wrong with the text.
    """
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError("has no port; give HOST:PORT, [v6]:PORT or :PORT")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > _MAX_PORT:
        raise ValueError(f"has the port {port!a}; give a number from 0 to {_MAX_PORT}")
    if not host:
        return Address(None, int(port))
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        literal, percent, scope = host.partition("%")
        if not _is_literal(socket.AF_INET6, literal) or (percent and not _SCOPE.fullmatch(scope)):
            raise ValueError(f"has {host!a} in brackets, which is not an IPv6 address")
        return Address(host, int(port))
    if ":" in host:
        raise ValueError("has more than one colon; give an IPv6 address in brackets, [v6]:PORT")
    if not _HOST_NAME.fullmatch(host):
        raise ValueError(f"has the host {host!a}; give a host name, an IPv4 address or an IPv6 address in brackets")
    if host.rstrip(".").rpartition(".")[2].isdigit() and not _is_literal(socket.AF_INET, host):
        raise ValueError(f"has the host {host!a}, which is not an IPv4 address")
    return Address(host, int(port))


def _is_literal(family: socket.AddressFamily, host: str) -> bool:
    try:
        socket.inet_pton(family, host)
    except (OSError, ValueError):  # ValueError: a NUL, or a character beyond ASCII
        return False
    return True


def format_address(host: str, port: int) -> str:
    """Write ``HOST:PORT``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def own_address(listener: SocketType) -> str:
    """Write where a socket listens, the way `parse_address` reads it."""
    return shown_address(listener.getsockname())


def shown_address(sockaddr: tuple[Any, ...]) -> str:
    """Write a socket's address: an IPv4-mapped one as IPv4 (RFC 4291 §2.5.5.2), a scope by name (RFC 4007 §11)."""
    host, port, *more = sockaddr
    if "." in host:
        host = host.removeprefix("::ffff:")
    if more and (scope := more[-1]):
        host = f"{host}%{_interface(scope)}"
    return format_address(host, port)


def _interface(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:  # removed meanwhile, or no descriptor left to ask with
        return str(index)


def bind(address: Address, backlog: int, *, cork: bool = True, option: str = "--listen") -> list[socket.socket]:
    """Return listening sockets, one for each address of ``address.host``: non-blocking, IPv6 apart from IPv4.

    ``backlog`` is what listen(2) gets; the kernel lowers it to net.core.somaxconn. ``cork`` makes a connection's only
    reply and its FIN one segment, see `cork_replies`. A family that this host lacks is left out as long as another
    remains. Raises `ListenError`, which names ``option``; nothing stays bound then.
    """
    for last_try in [False] * (_PORT_TRIES - 1) + [True]:
        try:
            return _bind_all(address, backlog, cork=cork)
        except OSError as error:
            # Port 0: what the kernel chose for the first family can be taken in the second.
            if address.port or last_try or error.errno != errno.EADDRINUSE:
                raise _explain(option, address, error) from None
    raise AssertionError("unreachable")


def _bind_all(address: Address, backlog: int, *, cork: bool) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    refusal: OSError | None = None
    try:
        for family, (host, _, *more) in _resolve(address.host):
            port = listeners[0].getsockname()[1] if listeners else address.port
            try:
                listeners.append(_listen(family, (host, port, *more), backlog, cork=cork))
            except OSError as error:
                if error.errno not in _NO_SUCH_FAMILY:
                    raise
                refusal = error
        if refusal and not listeners:
            raise refusal
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _resolve(host: str | None) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    """Return the addresses, with port 0: host and port, and for IPv6 flow and scope."""
    if host is None:
        return [(socket.AF_INET, ("0.0.0.0", 0)), (socket.AF_INET6, ("::", 0))]  # noqa: S104 - what :PORT asks for
    # As octets: a str would be encoded as an IDN, which loads half a megabyte of tables.
    found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in found))


def share(listener: socket.socket, backlog: int, *, cork: bool = True) -> socket.socket:
    """Return a further socket at the address of ``listener``: the kernel spreads new connections over both.

    SO_REUSEPORT, socket(7): a queue for each process, and no two that wake up for the same client. It is set only now,
    on a socket that was bound without, so that a port which another program has remains an error. Raises `ListenError`.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        return _listen(listener.family, listener.getsockname(), backlog, cork=cork, reuse_port=True)
    except OSError as error:
        raise _explain("--workers", parse_address(own_address(listener)), error) from None


def _listen(
    family: int, sockaddr: tuple[Any, ...], backlog: int, *, cork: bool, reuse_port: bool = False
) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart must not wait for TIME_WAIT
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        cork_replies(listener, on=cork)
        listener.bind(sockaddr)
        listener.listen(backlog)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _explain(option: str, address: Address, error: OSError) -> ListenError:
    if isinstance(error, socket.gaierror):
        way_out = "give a name that resolves, or an address"
    else:
        way_out = _WAYS_OUT.get(error.errno or 0, "")
    return ListenError(f"{option} {address}: {error.strerror}" + (f"; {way_out}" if way_out else ""))
