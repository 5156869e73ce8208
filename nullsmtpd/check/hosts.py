"""A host and its addresses, each asked apart."""

import socket
from collections.abc import Callable

from nullsmtpd.check.probe import Probe, probe, unresolved

__all__ = ["Ask", "addresses_of", "probe_host"]

#: `probe`, or a partial of it: what takes an address and a port.
Ask = Callable[[str, int], Probe]


def probe_host(host: str, port: int, ask: Ask = probe) -> list[Probe]:
    """Return what was seen at each address of a name, IPv4 and IPv6, or at the one literal address."""
    try:
        addresses = addresses_of(host)
    except OSError as error:
        return [unresolved(host, port, error)]
    return [ask(address, port) for address in addresses]


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
