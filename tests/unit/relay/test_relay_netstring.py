"""Netstrings in any number of pieces, and input that is not a netstring."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullsmtpd.relay.protocol import MAX_REQUEST_OCTETS, NetstringError, netstring, take_netstring


def take_all(octets: bytes, cuts: list[int]) -> tuple[list[bytes], bool, bytes]:
    """Pass ``octets`` cut at ``cuts``; return what was taken, whether it ended in an error, and what is left."""
    received = bytearray()
    taken: list[bytes] = []
    edges = [0, *sorted(cut % (len(octets) + 1) for cut in cuts), len(octets)]
    try:
        for begin, end in itertools.pairwise(edges):
            received += octets[begin:end]
            while (one := take_netstring(received)) is not None:
                taken.append(one)
    except NetstringError:
        return taken, True, b""
    return taken, False, bytes(received)


CUTS = st.lists(st.integers(0, 5000), max_size=20)


@given(st.lists(st.binary(max_size=50)), CUTS)
def test_what_was_put_in_comes_out_however_it_is_cut(contents: list[bytes], cuts: list[int]) -> None:
    """Invariant: any contents, in any pieces, come out as they were, and nothing is left."""
    assert take_all(b"".join(map(netstring, contents)), cuts) == (contents, False, b"")


@given(st.binary(max_size=60) | st.from_regex(rb"\A([0-9]{0,5}[:,a]{0,2}){0,8}\Z"), CUTS)
def test_any_octets_give_the_same_however_they_are_cut(octets: bytes, cuts: list[int]) -> None:
    """Invariant: what is taken, and whether there is an error, depends on the octets alone; nothing else is raised."""
    assert take_all(octets, cuts) == take_all(octets, list(range(len(octets)))) == take_all(octets, [])


@given(st.lists(st.binary(max_size=50), max_size=5), st.binary(max_size=50), CUTS)
def test_an_incomplete_netstring_is_waited_for(contents: list[bytes], last: bytes, cuts: list[int]) -> None:
    """Invariant: the beginning of a netstring is no error, and hides none of those before it."""
    whole = b"".join(map(netstring, contents))
    for length in range(1, len(netstring(last))):
        begun = netstring(last)[:length]
        assert take_all(whole + begun, cuts) == (contents, False, begun)


@pytest.mark.parametrize(
    "octets",
    [
        *(b":,", b",", b"a", b" 1:a,", b"-1:a,", b"+1:a,", b"1 :a,", b"00:,", b"01:a,", b"1:ab", b"1:a;", b"0:a"),
        *(b"4097:", b"9999:", b"10000", b"99999999999999999999999999:", b"\xb9:a,", b"1\n:a,", b"0x1:a,"),
    ],
)
def test_input_that_is_no_netstring_is_an_error_at_once(octets: bytes) -> None:
    """No digits, leading zeros, a missing comma, and lengths beyond the limit, before any of the content has come."""
    with pytest.raises(NetstringError):
        take_netstring(bytearray(octets))


def test_the_longest_netstring_that_is_accepted_has_the_limit_as_its_length() -> None:
    """One octet more is an error."""
    octets = b"x" * MAX_REQUEST_OCTETS
    assert take_netstring(bytearray(netstring(octets))) == octets
    with pytest.raises(NetstringError):
        take_netstring(bytearray(netstring(octets + b"x")))


def test_octets_after_a_netstring_stay() -> None:
    """They belong to the next one, and are an error only when that one is taken."""
    received = bytearray(b"1:a,x")
    assert take_netstring(received) == b"a"
    assert received == b"x"
    with pytest.raises(NetstringError):
        take_netstring(received)
