"""Netstrings in any number of pieces, and what is none of them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullsmtpd.relay.netstring import NetstringError, Netstrings, netstring

LIMIT = 1000


def take_all(octets: bytes, cuts: list[int]) -> tuple[list[bytes], bool, int]:
    """Feed ``octets`` cut at ``cuts``; return what was taken, whether it ended in a mistake, and what is left."""
    parser = Netstrings(LIMIT)
    taken: list[bytes] = []
    edges = [0, *sorted(cut % (len(octets) + 1) for cut in cuts), len(octets)]
    try:
        for begin, end in itertools.pairwise(edges):
            parser.feed(octets[begin:end])
            while (one := parser.take()) is not None:
                taken.append(one)
    except NetstringError:
        return taken, True, 0
    return taken, False, len(parser)


CUTS = st.lists(st.integers(0, 5000), max_size=20)


@given(st.lists(st.binary(max_size=50)), CUTS)
def test_what_was_put_in_comes_out_however_it_is_cut(contents: list[bytes], cuts: list[int]) -> None:
    """Invariant: any contents, in any pieces, come out as they were, and nothing is left."""
    assert take_all(b"".join(map(netstring, contents)), cuts) == (contents, False, 0)


@given(st.binary(max_size=60) | st.from_regex(rb"\A([0-9]{0,5}[:,a]{0,2}){0,8}\Z"), CUTS)
def test_any_octets_give_the_same_however_they_are_cut(octets: bytes, cuts: list[int]) -> None:
    """Invariant: what is taken, and whether there is a mistake, depends on the octets alone; nothing else is raised."""
    assert take_all(octets, cuts) == take_all(octets, list(range(len(octets)))) == take_all(octets, [])


@given(st.lists(st.binary(max_size=50), max_size=5), st.binary(max_size=50), CUTS)
def test_a_cut_off_netstring_is_waited_for(contents: list[bytes], last: bytes, cuts: list[int]) -> None:
    """Invariant: any true beginning of a netstring is no mistake, and hides none of those before it."""
    whole = b"".join(map(netstring, contents))
    for length in range(1, len(netstring(last))):
        assert take_all(whole + netstring(last)[:length], cuts) == (contents, False, length)


@pytest.mark.parametrize(
    "octets",
    [
        *(b":,", b",", b"a", b" 1:a,", b"-1:a,", b"+1:a,", b"1 :a,", b"00:,", b"01:a,", b"1:ab", b"1:a;", b"0:a"),
        *(b"1001:", b"9999", b"10000", b"99999999999999999999999999:", b"\xb9:a,", b"1\n:a,", b"0x1:a,"),
    ],
)
def test_what_is_no_netstring_is_a_mistake_at_once(octets: bytes) -> None:
    """No digits, leading zeros, a missing comma, and lengths beyond the limit, before any of the content has come."""
    parser = Netstrings(LIMIT)
    parser.feed(octets)
    with pytest.raises(NetstringError):
        parser.take()


def test_the_longest_that_is_taken_has_as_many_octets_as_the_limit() -> None:
    """The limit itself is within it, one more is not."""
    parser = Netstrings(LIMIT)
    parser.feed(netstring(b"x" * LIMIT))
    assert parser.take() == b"x" * LIMIT
    parser.feed(b"%d:" % (LIMIT + 1))
    with pytest.raises(NetstringError, match="beyond 1000"):
        parser.take()


def test_octets_after_a_netstring_stay() -> None:
    """What follows belongs to the next one, and is a mistake only when that one is asked for."""
    parser = Netstrings(LIMIT)
    parser.feed(b"1:a,x")
    assert parser.take() == b"a"
    assert len(parser) == 1
    with pytest.raises(NetstringError):
        parser.take()
