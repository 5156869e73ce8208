"""What is bound, to which addresses, and which errors there are when it cannot be."""

import errno
import os
import re
import socket
import sys
from typing import Any
from unittest.mock import Mock

import pytest
from hosts import open_host
from support import Start, require, require_root, require_tools

from nullsmtpd.runtime import sockets, tcp
from nullsmtpd.runtime.sockets import Address, ListenError, bind
from nullsmtpd.runtime.tcp import accept_queue_len


def refusal(address: Address) -> ListenError:
    """Return the error of binding an address; as text it is what a message begins with."""
    with pytest.raises(ListenError) as raised:
        bind(address, 16)
    assert raised.value.filename == str(address)
    return raised.value


def closed(listeners: list[socket.socket]) -> list[tuple[str, int]]:
    """Close the sockets and return where they listened."""
    addresses = [listener.getsockname()[:2] for listener in listeners]
    for listener in listeners:
        listener.close()
    return addresses


def test_all_addresses_share_one_port_in_both_families() -> None:
    """Port 0 of all addresses is one that is free in both families, IPv4 first."""
    (v4, v4_port), (v6, v6_port) = closed(bind(Address(None, 0), 16))
    assert (v4, v6) == ("0.0.0.0", "::")  # noqa: S104
    assert v4_port == v6_port != 0


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EADDRNOTAVAIL])
def test_a_host_without_ipv6_is_no_error_for_all_addresses(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """All addresses are those of the families that there are; an IPv6 address asked for by name is an error."""
    real = socket.socket

    def without_ipv6(family: int = -1, *rest: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(number, os.strerror(number))
        return real(family, *rest)

    monkeypatch.setattr(sockets.socket, "socket", without_ipv6)  # type: ignore[attr-defined]
    assert [host for host, _ in closed(bind(Address(None, 0), 16))] == ["0.0.0.0"]  # noqa: S104
    assert refusal(Address("::1", 0)).errno == number


def test_a_port_taken_in_the_second_family_makes_port_0_try_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel chose for IPv4 may be taken in IPv6; the next choice is tried, and nothing stays bound."""
    real = socket.create_server
    refusals: list[int] = []

    def taken_once(sockaddr: tuple[Any, ...], *, family: int, **named: Any) -> socket.socket:  # noqa: ANN401
        if family == socket.AF_INET6 and not refusals:
            refusals.append(sockaddr[1])
            raise OSError(errno.EADDRINUSE, "Address already in use")
        return real(sockaddr, family=family, **named)

    monkeypatch.setattr(socket, "create_server", taken_once)
    assert len(closed(bind(Address(None, 0), 16))) == 2
    assert len(refusals) == 1
    closed(bind(Address(None, refusals[0]), 16))


def test_without_a_port_that_is_free_in_both_families_the_search_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is that of the last try."""
    in_use = OSError(errno.EADDRINUSE, "Address already in use")
    monkeypatch.setattr(socket, "create_server", Mock(side_effect=in_use))
    assert refusal(Address(None, 0)).errno == errno.EADDRINUSE


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
        daemon = start(prefix=host.prefix, listen=f"[{found[1]}%cable]:2525")
        assert daemon.addresses() == [(f"{found[1]}%cable", 2525)]
        answer = host.run(sys.executable, "-m", "nullsmtpd", "check", f"[{found[1]}%cable]:2525")
        assert " good: " in answer


def test_a_taken_port_is_an_error_and_nothing_stays_bound() -> None:
    """The second address of a name, or of :PORT, may be at fault, and the first must not stay bound."""
    with socket.socket(socket.AF_INET6) as other:
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.bind(("::", 0))
        other.listen()
        port = other.getsockname()[1]
        assert refusal(Address("::1", port)).errno == errno.EADDRINUSE
        assert refusal(Address(None, port)).errno == errno.EADDRINUSE
        closed(bind(Address("127.0.0.1", port), 16))


def test_an_address_of_another_host_is_an_error() -> None:
    """192.0.2.1 (RFC 5737) belongs to no host."""
    assert refusal(Address("192.0.2.1", 0)).errno == errno.EADDRNOTAVAIL


def test_a_name_that_does_not_resolve_is_an_error() -> None:
    """The domain .invalid (RFC 6761) resolves nowhere."""
    assert isinstance(refusal(Address("nowhere.invalid", 0)).__cause__, socket.gaierror)


def test_listeners_are_non_blocking_and_apart_by_family() -> None:
    """IPv6 does not take IPv4's connections."""
    listeners = bind(Address(None, 0), 16)
    for listener in listeners:
        assert listener.getblocking() is False
    assert listeners[1].getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    closed(listeners)


@pytest.mark.parametrize("reuse_port", [True, False])
def test_only_a_port_that_is_to_be_shared_can_be_bound_twice(*, reuse_port: bool) -> None:
    """SO_REUSEADDR alone does not allow two listeners."""
    any_port = Address("127.0.0.1", 0)
    listeners = bind(any_port, 16, reuse_port=True) if reuse_port else bind(any_port, 16)
    address = Address("127.0.0.1", listeners[0].getsockname()[1])
    if reuse_port:
        listeners += bind(address, 16, reuse_port=True)
    else:
        with pytest.raises(ListenError):
            bind(address, 16, reuse_port=True)
    closed(listeners)


def test_a_restart_does_not_wait_for_old_connections() -> None:
    """A connection in TIME_WAIT at the port does not keep it from being bound."""
    (listener,) = bind(Address("127.0.0.1", 0), 16)
    listener.setblocking(True)
    with socket.create_connection(listener.getsockname()) as client:
        accepted, _ = listener.accept()
        accepted.close()  # the side that closes first has the TIME_WAIT
        assert client.recv(1) == b""
    ((_, port),) = closed([listener])
    closed(bind(Address("127.0.0.1", port), 16))


def test_the_kernel_tells_how_many_connections_wait() -> None:
    """tcpi_unacked of a listening socket is its accept queue; elsewhere the default is returned."""
    (listener,) = bind(Address("127.0.0.1", 0), 100)
    wanted = [0, 5] if sys.platform == "linux" else [7, 7]
    lengths = [accept_queue_len(listener, 7)]
    clients = [socket.create_connection(listener.getsockname()) for _ in range(5)]
    lengths.append(accept_queue_len(listener, 7))
    closed([*clients, listener])
    assert lengths == wanted


@pytest.mark.parametrize("mode", ["close", "reset", "stay"])
def test_the_portable_look_at_a_client_agrees_with_the_kernel(mode: str) -> None:
    """Where TCP_INFO is missing, a peek tells a client that stays from one that has closed or reset."""
    require(sys.platform == "linux", "TCP_INFO, to compare with")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        connection, _ = listener.accept()
        connection.shutdown(socket.SHUT_WR)
        if mode == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if mode != "stay":
            client.close()
        assert tcp._has_closed_by_input(connection) is (mode != "stay")
        assert tcp.peer_has_closed(connection) is (mode != "stay")
        connection.close()
        client.close()
