import pytest
from hypothesis import given
from hypothesis import strategies as st

import nullsmtpd
from nullsmtpd.responder.dialogues import mail_dialogue, session_dialogue
from nullsmtpd.responder.replies import REPLY, reply_line

PRINTABLE = st.characters(min_codepoint=0x20, max_codepoint=0x7E)


def test_the_default_reply_is_the_line_of_rfc_7504() -> None:
    """The default is the code and the very text of RFC 7504 §3."""
    assert REPLY == b"521 Host does not accept mail\r\n"
    assert nullsmtpd.REPLY is REPLY


@given(st.text(PRINTABLE, min_size=1, max_size=506))
def test_every_line_of_printable_ascii_becomes_one_reply(text: str) -> None:
    """Invariant: code, space, the text as it is, CRLF; at most 512 octets; no other CR or LF."""
    reply = reply_line(text)
    assert reply == b"521 " + text.encode("ascii") + b"\r\n"
    assert len(reply) <= 512
    assert reply.count(b"\r") == reply.count(b"\n") == 1


@given(st.text(PRINTABLE), st.characters().filter(lambda c: not " " <= c <= "~"), st.text(PRINTABLE))
def test_any_other_character_is_refused_and_named(before: str, wrong: str, after: str) -> None:
    """Invariant: a control character or one beyond ASCII, anywhere, is refused with its position."""
    with pytest.raises(ValueError, match=rf"at character {len(before) + 1};"):
        reply_line(before + wrong + after)


@pytest.mark.parametrize("length", [507, 508, 10_000])
def test_a_text_that_exceeds_the_reply_is_refused(length: int) -> None:
    """One octet over 512 is too many (RFC 5321 §4.5.3.1.5)."""
    assert len(reply_line("x" * 506)) == 512
    with pytest.raises(ValueError, match=f"{length} characters long; at most 506"):
        reply_line("x" * length)


def test_an_empty_text_is_refused() -> None:
    """A reply without a text says nothing to the person who reads the bounce."""
    with pytest.raises(ValueError, match="empty"):
        reply_line("")


@given(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z0-9]{1,20}){0,3}", fullmatch=True))
def test_any_domain_name_makes_replies_of_the_right_form(hostname: str) -> None:
    """Invariant: every line of every reply has a known code, ends in CRLF and has at most 512 octets."""
    for dialogue in (mail_dialogue("x" * 500, hostname), session_dialogue("x" * 506, hostname)):
        replies = [*dialogue.replies.values(), *(value for value in dialogue if isinstance(value, bytes))]
        assert len(replies) == len(dialogue.replies) + 6
        for line in b"".join(replies).splitlines(keepends=True):
            assert line[:3] in {b"220", b"221", b"250", b"421", b"521"}
            assert len(line) <= 512
            assert line.count(b"\n") == line.count(b"\r") == line.endswith(b"\r\n")


def test_the_package_has_no_other_names() -> None:
    """A name that the package does not have is an AttributeError, as for any module."""
    with pytest.raises(AttributeError, match="no attribute 'reply'"):
        getattr(nullsmtpd, "reply")  # noqa: B009 - type checkers know that it is missing
    assert nullsmtpd.reply_line is reply_line
