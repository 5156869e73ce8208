"""What is bound, to which addresses, and what is said when it cannot be."""

import errno
import re
import socket
import sys
from typing import Any

import pytest
from hosts import open_host
from support import Start, require_root, require_tools

from nullsmtpd.runtime import sockets as listeners
from nullsmtpd.runtime.sockets import Address, ListenError, bind


def closed(sockets: list[socket.socket]) -> list[tuple[str, int]]:
    """Close the sockets and return where they listened."""
    addresses = [listener.getsockname()[:2] for listener in sockets]
    for listener in sockets:
        listener.close()
    return addresses


def test_all_addresses_share_one_port_in_both_families() -> None:
    """Port 0 of all addresses is one that is free in both families, IPv4 first."""
    (v4, v4_port), (v6, v6_port) = closed(bind(Address(None, 0), 16))
    assert (v4, v6) == ("0.0.0.0", "::")  # noqa: S104
    assert v4_port == v6_port != 0


def test_a_host_without_ipv6_is_no_error_for_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """All addresses are those of the families that there are; an IPv6 address asked for by name is an error."""
    real = socket.socket

    def without_ipv6(family: int = -1, *rest: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *rest)

    monkeypatch.setattr(listeners.socket, "socket", without_ipv6)  # type: ignore[attr-defined]
    assert [host for host, _ in closed(bind(Address(None, 0), 16))] == ["0.0.0.0"]  # noqa: S104
    with pytest.raises(ListenError, match=r"--listen \[::1\]:0: Address family not supported"):
        bind(Address("::1", 0), 16)


def test_a_port_taken_in_the_second_family_makes_port_0_try_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel chose for IPv4 may be taken in IPv6; the next choice is tried, and nothing stays bound."""
    real_listen = listeners._listen
    refusals: list[int] = []

    def taken_once(family: int, sockaddr: tuple[Any, ...], backlog: int, *, cork: bool) -> socket.socket:
        if family == socket.AF_INET6 and not refusals:
            refusals.append(sockaddr[1])
            raise OSError(errno.EADDRINUSE, "Address already in use")
        return real_listen(family, sockaddr, backlog, cork=cork)

    monkeypatch.setattr(listeners, "_listen", taken_once)
    assert len(closed(bind(Address(None, 0), 16))) == 2
    assert len(refusals) == 1
    closed(bind(Address(None, refusals[0]), 16))


def test_a_name_listens_on_each_of_its_addresses() -> None:
    """A name is resolved once, at start; localhost is 127.0.0.1 at least."""
    assert ("127.0.0.1") in [host for host, _ in closed(bind(Address("localhost", 0), 16))]


def test_the_interface_of_a_link_local_address_counts(start: Start) -> None:
    """An address with its scope (RFC 4007) is bound on that interface, and shown with it."""
    require_root()
    require_tools("unshare", "nsenter", "ip")
    with open_host() as host:
        host.run("sh", "-ec", "ip link add cable type veth peer name far; ip link set far up; ip link set cable up")
        found = re.search(r"inet6 (fe80:\S+)/64", host.run("ip", "-6", "address", "show", "dev", "cable"))
        assert found
        daemon = start("--workers", "2", prefix=host.prefix, listen=f"[{found[1]}%cable]:2525")
        assert daemon.addresses() == [(f"{found[1]}%cable", 2525)]
        answer = host.run(sys.executable, "-m", "nullsmtpd", "check", f"[{found[1]}%cable]:2525")
        assert " good: " in answer


def test_a_taken_port_says_so() -> None:
    """The message names the address, the reason and the way out."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ListenError, match=rf"--listen 127\.0\.0\.1:{port}: Address already in use; .*another port"):
            bind(Address("127.0.0.1", port), 16)


def test_an_address_of_another_host_is_refused() -> None:
    """192.0.2.1 (RFC 5737) belongs to nobody."""
    with pytest.raises(ListenError, match=r"--listen 192\.0\.2\.1:0: .*this host does not have that address"):
        bind(Address("192.0.2.1", 0), 16)


def test_a_name_that_does_not_resolve_is_refused() -> None:
    """The domain .invalid (RFC 6761) resolves nowhere."""
    with pytest.raises(ListenError, match=r"--listen nowhere\.invalid:0: .*give a name that resolves"):
        bind(Address("nowhere.invalid", 0), 16)


def test_listeners_are_non_blocking_apart_by_family_and_corked() -> None:
    """IPv6 does not take IPv4's connections; line and FIN will share a segment (Linux)."""
    sockets = bind(Address(None, 0), 16)
    try:
        for listener in sockets:
            assert listener.getblocking() is False
            if sys.platform == "linux":
                assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK)
        assert sockets[1].getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    finally:
        closed(sockets)
