"""Addresses as operators write them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullsmtpd.runtime.sockets import Address, format_sockaddr, parse_address

PORTS = st.integers(0, 65535)


@given(host=st.sampled_from(["127.0.0.1", "0.0.0.0", "localhost", "mail.example.org", "a_b", ""]), port=PORTS)  # noqa: S104
def test_host_and_port_are_read_and_written_alike(host: str, port: int) -> None:
    """Invariant: what parse_address reads, str() writes; without a host, all addresses are meant."""
    assert parse_address(f"{host}:{port}") == Address(host or None, port)
    assert str(parse_address(f"{host}:{port}")) == f"{host}:{port}"


@given(address=st.ip_addresses(v=6), port=PORTS)
def test_ipv6_addresses_are_read_in_brackets_only(address: object, port: int) -> None:
    """Invariant: [v6]:PORT is read and written alike, and v6:PORT is refused with a hint at the brackets."""
    assert str(parse_address(f"[{address}]:{port}")) == f"[{address}]:{port}"
    with pytest.raises(ValueError, match=re.escape("[v6]:PORT")):
        parse_address(f"{address}:{port}")


@given(st.text())
def test_any_text_is_an_address_or_a_clear_refusal(text: str) -> None:
    """Invariant: parse_address returns what str() writes back into itself, or raises ValueError with a hint."""
    try:
        address = parse_address(text)
    except ValueError as error:
        assert "give HOST:PORT, [v6]:PORT or :PORT" in str(error)
    else:
        assert 0 <= address.port <= 65535
        assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2525",
        "localhost",
        "127.0.0.1:",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:٢٥",
        "127.0.0.1:0025000",
        "127.0.0.1:smtp",
        "::1:25",
        "[::1:25",
        "::1]:25",
        "[::1]",
        "[::g]:25",
        "[fe80::1%]:25",
        "[fe80::1%ü]:25",
        "[fe80::1%a\nb]:25",
        "[127.0.0.1]:25",
        "[]:25",
        "[::\0]:25",
        "256.0.0.1:25",
        "127.1:25",
        "1.2.3:25",
        "exa mple:25",
        "bücher.example:25",
        "-a:25",
        "a..b:25",
        " 127.0.0.1:25",
    ],
)
def test_what_is_no_address_is_refused_with_what_would_be_valid(text: str) -> None:
    """Without a port, with another number, or with a host that is neither a name nor an address."""
    with pytest.raises(ValueError, match=r"^is not an address; give HOST:PORT, \[v6\]:PORT or :PORT, .* 0 to 65535$"):
        parse_address(text)


@pytest.mark.parametrize(
    ("sockaddr", "text"),
    [
        (("192.0.2.1", 40000), "192.0.2.1:40000"),
        (("2001:db8::1", 25, 0, 0), "[2001:db8::1]:25"),
        (("::ffff:192.0.2.1", 40000, 0, 0), "192.0.2.1:40000"),
        (("::ffff:0:c000:201", 40000, 0, 0), "[::ffff:0:c000:201]:40000"),  # RFC 2765 §2.1: translated, not mapped
        (("64:ff9b::192.0.2.1", 40000, 0, 0), "[64:ff9b::192.0.2.1]:40000"),
        (("fe80::1", 40000, 0, 2**31 - 1), "[fe80::1%2147483647]:40000"),  # an interface that was removed
    ],
)
def test_a_socket_address_is_written_as_operators_write_it(sockaddr: tuple[str, int], text: str) -> None:
    """Brackets around IPv6, the interface of a link-local address, IPv4-mapped addresses as IPv4."""
    assert format_sockaddr(sockaddr) == text
