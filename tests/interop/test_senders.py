"""Real senders of Debian 12 and 13, each with real messages for hosts that refuse mail, two in a row for each host.

RFC 7504 §3 leaves to the sender what it makes of a 521. What each one does is read from its log and from the mail that
the author of the message receives. The tables of the documentation and the facts of ``nullsmtpd check`` are compared
with the same records.
"""

import email
import email.policy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from client_programs import CLIENTS, Client
from debian import SUITES
from flufl.bounce import all_failures
from records import GREETED_BY_521, Fate, Record, Stage, select
from senders import RELAYS, TLS_REQUIRED, Relay
from shown import assert_shows
from support import require_root, require_tools
from table import AT_ONCE, TABLES, Answers, ask_all

from nullsmtpd.check import senders as known

_HERE = Path(__file__).resolve().parent

#: Where each table is shown.
_DOCUMENTS = {
    "mail servers": _HERE / "README.md",
    "programs": _HERE / "README.md",
    "senders": _HERE.parents[1] / "README.md",
}


def _each(relays: Sequence[Relay]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("relay", relays, ids=lambda relay: f"{relay.name} {relay.setting}".strip())


each_suite = pytest.mark.parametrize("suite", SUITES)
each_relay = _each(RELAYS)
each_relay_without_tls = _each([relay for relay in RELAYS if relay.setting != TLS_REQUIRED])
each_relay_with_tls = _each([relay for relay in RELAYS if relay.setting == TLS_REQUIRED])


@pytest.fixture(scope="module")
def answers() -> Iterator[Answers]:
    """Have every sender try everything, in the background."""
    require_root()
    require_tools("dnsmasq", "ip", "nsenter", "setpriv", "unshare")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            yield ask_all(pool)
        finally:
            pool.shutdown(cancel_futures=True)


@pytest.fixture
def records(answers: Answers, relay: Relay, suite: str) -> list[Record]:
    """Return what became of the messages of one mail server."""
    return answers.relays[relay, suite].result()


@each_suite
@each_relay
def test_close_and_session_are_the_same_to_a_sender(records: list[Record]) -> None:
    """To a sender that is greeted by 521 it makes no difference how the server would go on."""
    close, session = (
        [(r.message.purpose, r.fate, r.stage, r.days, r.warned, r.status, r.has_text) for r in seen]
        for seen in (sorted(select(records, "first next utf8 spared", (mode,))) for mode in GREETED_BY_521)
    )
    assert len(close) >= 3
    assert close == session


@each_suite
@each_relay_without_tls
def test_in_mode_mail_every_message_is_bounced_at_once(records: list[Record]) -> None:
    """RFC 7504 §3: 521 to MAIL is the last word, the first time and the next; the author can read the text."""
    messages = select(records, "first next utf8", ("mail",))
    assert len(messages) == 3
    for record in messages:
        if record.fate is Fate.NOT_TAKEN:
            assert (record.sender, record.message.purpose) == ("OpenSMTPD", "utf8")
        else:
            assert (record.fate, record.stage, record.has_text) == (Fate.BOUNCED, Stage.AT_ONCE, True)


@each_suite
@each_relay_with_tls
def test_in_mode_mail_a_sender_that_requires_tls_tries_until_the_end(records: list[Record]) -> None:
    """Mode mail offers no STARTTLS (RFC 3207), and such a sender stops before MAIL, which would get the 521."""
    for record in select(records, "first next", ("mail",)):
        assert (record.fate, record.stage, record.has_text) == (Fate.BOUNCED, Stage.LAST, False)


@each_suite
@each_relay_without_tls
def test_bounces_of_mode_mail_are_hard_failures_to_a_parser(records: list[Record]) -> None:
    """Mailing-list software takes each for a permanent failure of that recipient (RFC 3464); dma has only free text."""
    for record in select(records, "first next", ("mail",)):
        bounce = email.message_from_bytes(record.told, policy=email.policy.default)
        temporary, permanent = all_failures(bounce)
        assert set(permanent) == ({record.message.recipient.encode()} if record.status else set()), record.told
        assert not set(temporary)
        assert bool(record.status) == (record.sender != "dma")


@each_suite
@each_relay
def test_null_mx_is_not_connected_to(records: list[Record]) -> None:
    """RFC 7505 §3: no sender connects to a domain with a null MX, also not at the address that this domain has."""
    (record,) = select(records, "null")
    assert (record.fate, record.connections) == (Fate.BOUNCED, 0)


@each_suite
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: f"{client.name} {client.setting}".strip())
def test_program_fails_and_shows_why(answers: Answers, client: Client, suite: str) -> None:
    """A program without a queue ends with an error that has the 521, and the text unless it is curl; or lacks TLS."""
    records = [r for r in answers.programs[suite].result() if (r.sender, r.setting) == (client.name, client.setting)]
    assert len(records) == 7
    for record in records:
        lacks_tls = client.setting == TLS_REQUIRED and record.message.mode == "mail"
        assert record.fate is Fate.FAILED
        assert record.has_code == (not lacks_tls)
        assert record.has_text == (not lacks_tls and client.name != "curl")


@pytest.mark.parametrize("name", TABLES)
def test_documentation_shows_what_the_senders_do(answers: Answers, name: str) -> None:
    """A table in the documentation is the one that the senders make now."""
    assert_shows(_DOCUMENTS[name], name, TABLES[name](answers))


@each_suite
@each_relay_without_tls
def test_check_knows_what_the_senders_do(answers: Answers, relay: Relay, suite: str, records: list[Record]) -> None:
    """The facts from which ``nullsmtpd check`` makes its words are what the senders of both releases do."""
    (fact,) = (sender for sender in known.SENDERS if (sender.name, sender.setting) == (relay.name, relay.setting))
    (with_tls,) = (other for other in RELAYS if (other.name, other.setting) == (relay.name, TLS_REQUIRED))
    those_with_tls = answers.relays[with_tls, suite].result()
    (null,) = select(records, "null")
    is_too_old = bool(fact.null_mx_since) and _numbers(null.version) < _numbers(fact.null_mx_since)
    greeted = select(records, "first", GREETED_BY_521)
    assert {
        "greeting": _fate(greeted),
        "greeting_again": _fate(select(records, "next", GREETED_BY_521)),
        "ehlo": _fate(select(records, "ehlo")),
        "mail": _fate(select(records, "first next", ("mail",))),
        "mail_requiring_tls": _fate(select(those_with_tls, "first next", ("mail",))),
        "null_mx": _fate([null]),
        "days": {record.days for record in records + those_with_tls} - {0},
        "shows_text": all(record.has_text for record in greeted),
    } == {
        "greeting": fact.greeting,
        "greeting_again": fact.greeting_again,
        "ehlo": fact.ehlo,
        "mail": fact.mail,
        "mail_requiring_tls": fact.mail_requiring_tls,
        "null_mx": known.Fate.DEFERRED if is_too_old else fact.null_mx,
        "days": {fact.days},
        "shows_text": fact.shows_text,
    }


def _fate(records: list[Record]) -> known.Fate:
    (is_at_once,) = {record.stage is Stage.AT_ONCE for record in records}
    return known.Fate.BOUNCED if is_at_once else known.Fate.DEFERRED


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]
