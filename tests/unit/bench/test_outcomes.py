"""How bench tells whole, incomplete and wrong replies apart."""

from hypothesis import given
from hypothesis import strategies as st

from bench.outcomes import ANSWERED, GREETING, Ending, Outcome, classify, is_whole

REPLY_TEXT = st.from_regex(r"[ -~]{0,20}", fullmatch=True)


def outcome_of(received: bytes, ending: Ending) -> Outcome:
    """Return the outcome of a connection that should give one 521 reply."""
    replies = (received,) if is_whole(received) else ()
    return classify(replies, b"" if replies else received, ending, GREETING)


@given(st.binary(max_size=40), st.sampled_from(Ending))
def test_octets_that_begin_no_reply_are_wrong(data: bytes, ending: Ending) -> None:
    """Invariant: data is answered, incomplete or wrong; and it is answered only if a CRLF ends it."""
    outcome = outcome_of(data, ending)
    if outcome in ANSWERED:
        assert data.startswith(b"521")
        assert data.endswith(b"\r\n")
    if data[:3] != b"521"[: len(data)]:
        assert outcome is Outcome.WRONG


@given(st.lists(REPLY_TEXT, max_size=3), REPLY_TEXT)
def test_every_cut_of_a_reply_is_told_from_the_whole(more: list[str], last: str) -> None:
    """Invariant: a reply of any number of lines is whole at its end and nowhere before; with more after it, wrong."""
    reply = "".join(f"521-{text}\r\n" for text in more).encode() + f"521 {last}\r\n".encode()
    assert outcome_of(reply, Ending.FIN) is Outcome.ANSWERED
    assert outcome_of(reply, Ending.RESET) is Outcome.ANSWERED_RESET
    for cut in range(len(reply)):
        assert outcome_of(reply[:cut], Ending.FIN) is Outcome.INCOMPLETE
    assert outcome_of(reply + b"521 again\r\n", Ending.FIN) is Outcome.WRONG


@given(st.lists(st.from_regex(r"[2-5][0-5][0-9] [ -~]{0,20}", fullmatch=True), min_size=4, max_size=4), st.data())
def test_every_cut_of_a_dialogue_is_told_from_the_whole(lines: list[str], data: st.DataObject) -> None:
    """Invariant: a dialogue is whole after its last reply and nowhere before; with more after it, wrong."""
    replies = tuple(f"{line}\r\n".encode() for line in lines)
    script = tuple((b"", reply[:3]) for reply in replies)
    assert all(is_whole(reply) and not is_whole(reply[:-1]) for reply in replies)
    assert classify(replies, b"", Ending.FIN, script) is Outcome.ANSWERED
    assert classify(replies, b"", Ending.RESET, script) is Outcome.ANSWERED_RESET
    assert classify(replies, b"2", Ending.FIN, script) is Outcome.WRONG
    assert classify((*replies, b"250 more\r\n"), b"", Ending.FIN, script) is Outcome.WRONG
    sent = data.draw(st.integers(0, 3))
    rest = replies[sent][: data.draw(st.integers(0, len(replies[sent]) - 1))]
    assert classify(replies[:sent], rest, Ending.FIN, script) is Outcome.INCOMPLETE
    assert classify(replies[:sent], rest, Ending.TIMEOUT, script) is Outcome.TIMEOUT
