"""What is a reply, and what is due in each mode."""

from hypothesis import given
from hypothesis import strategies as st
from misbehaving import OCTETS

import nullsmtpd.responder.replies
from nullsmtpd.check.dialogue import MODES, parse_replies


@given(octets=OCTETS, size=st.integers(0, 700), lenient=st.booleans())
def test_what_is_invalid_stays_so(octets: bytes, size: int, *, lenient: bool) -> None:
    """Invariant: once octets can become no reply, none after them make one; complete replies remain."""
    replies, rest, is_invalid = parse_replies(octets[:size], lenient=lenient)
    more, more_rest, _ = parse_replies(octets, lenient=lenient)
    assert more[: len(replies)] == replies
    if is_invalid:
        assert more == replies
        assert more_rest == rest + octets[size:]


@given(OCTETS)
def test_mail_servers_accept_every_reply_of_the_standard(octets: bytes) -> None:
    """Invariant: read leniently, octets begin with the replies that they begin with by RFC 5321 §4.2."""
    replies, _, is_invalid = parse_replies(octets)
    more, _, is_invalid_to_all = parse_replies(octets, lenient=True)
    assert more[: len(replies)] == replies
    assert is_invalid >= is_invalid_to_all


def test_each_mode_of_the_responder_has_a_script() -> None:
    """And no other: what check knows of the modes is what the responder has."""
    assert set(MODES) == set(nullsmtpd.responder.replies.MODES)
