"""Real senders, each with one real message for a host where nullsmtpd answers.

RFC 7504 §3 leaves to the sender what it makes of a 521; these tests say what each one does in each mode, judged by its
own log, its queue and the mailbox of the message's author. The README's table is the same records: see table.py.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from attempt import TEXT, Record
from records import ALL, NULL_MX_CASES, REFUSED_CLIENTS, REFUSED_RELAYS, SPARED_RELAYS, Case, Records
from senders import Verdict
from shown import assert_shows, release
from support import require, require_root, require_tools
from table import table

_README = Path(__file__).resolve().parents[2] / "README.md"

# The reply that the sender has to read in each mode.
_REPLY = {"close": f"521 {TEXT}", "session": f"521 {TEXT}", "mail": f"521 5.3.2 {TEXT}"}


class _Relay(NamedTuple):
    """What a relay does with the greeting 521, what it then does beside an MX that works, and what it says.

    In mode `mail` the verdict is the same for all: bounced. ``dialogue``: the verbs that it says there.
    """

    greeted: Verdict
    greeted_spared: Verdict
    sent: str
    dialogue: str
    days: float | None = None


_RELAYS = {
    "Postfix": _Relay(Verdict.DEFERRED, Verdict.DELIVERED, "QUIT", "EHLO MAIL RSET QUIT", days=5),
    "Postfix smtp_skip_5xx_greeting=no": _Relay(Verdict.BOUNCED, Verdict.BOUNCED, "QUIT", "EHLO MAIL RSET QUIT"),
    "Exim": _Relay(Verdict.BOUNCED, Verdict.DELIVERED, "QUIT", "EHLO MAIL QUIT"),
    "Sendmail": _Relay(Verdict.BOUNCED, Verdict.DELIVERED, "QUIT", "EHLO MAIL QUIT"),
    "OpenSMTPD": _Relay(Verdict.DEFERRED, Verdict.DELIVERED, "", "EHLO MAIL RSET QUIT", days=4),
}


class _Client(NamedTuple):
    """Exit status, what its user reads and the verbs that it says: after the greeting 521, and in mode `mail`."""

    greeted: tuple[int, str, str]
    at_mail: tuple[int, str, str]


_CLIENTS = {
    "smtplib of Python": _Client(
        (1, f"SMTPConnectError: (521, b'{TEXT}')", ""),
        (1, f"SMTPSenderRefused: (521, b'5.3.2 {TEXT}'", "EHLO MAIL RSET QUIT"),
    ),
    "aiosmtplib": _Client(
        (1, f"SMTPConnectResponseError: (521, '{TEXT}')", ""),
        (1, f"SMTPSenderRefused: (521, '5.3.2 {TEXT}'", "EHLO MAIL RSET QUIT"),
    ),
    "nodemailer": _Client(
        (1, f"response: '521 {TEXT}', responseCode: 521", ""),
        (1, f"response: '521 5.3.2 {TEXT}', responseCode: 521", "EHLO MAIL"),
    ),
    "net/smtp of Go": _Client((1, f"521 {TEXT}", ""), (1, f"521 5.3.2 {TEXT}", "EHLO MAIL")),
    "msmtp": _Client(
        (76, f"server message: 521 {TEXT}", ""),
        (65, f"server message: 521 5.3.2 {TEXT}", "EHLO MAIL"),
    ),
    "curl": _Client((8, "response: 521", ""), (55, "MAIL failed: 521", "EHLO MAIL QUIT")),
    "swaks": _Client((21, f"<** 521 {TEXT}", "QUIT"), (23, f"<** 521 5.3.2 {TEXT}", "EHLO MAIL QUIT")),
}
_SILENT_ABOUT_THE_TEXT = {"curl"}  # it shows the code alone, unless it is asked to be verbose


def _cases(cases: Sequence[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: f"{_key(case)}-{case.mode}")


def _key(case: Case) -> str:
    return f"{case.sender.name} {case.sender.setting}".strip()


@pytest.fixture(scope="module")
def records(request: pytest.FixtureRequest) -> Iterator[Records]:
    """Begin with what the selected tests ask for, so that one sender's waiting is another one's time."""
    require_root()
    require_tools("ip", "nsenter", "unshare", "setpriv", "dnsmasq")
    with Records() as records:
        for item in request.session.items:
            if isinstance(item, pytest.Function) and item.path == request.path:
                records.ask(_asked_for(item))
        yield records


def _asked_for(item: pytest.Function) -> Sequence[Case]:
    try:
        case = item.callspec.params["case"]
    except AttributeError:  # no parameters: the table
        return ALL
    assert isinstance(case, Case)
    return [case]


def _record(records: Records, case: Case) -> Record:
    _require(case)
    return records[case]


def _require(case: Case) -> None:
    missing = case.sender.missing()
    require(not missing, missing)


@_cases(REFUSED_RELAYS)
def test_relay_bounces_at_once_or_keeps_trying(records: Records, case: Case) -> None:
    """A relay bounces the message at once and shows its author the text, or defers it for days and shows nothing."""
    record = _record(records, case)
    expected = _RELAYS[_key(case)]
    assert record.verdict is (Verdict.BOUNCED if case.mode == "mail" else expected.greeted)
    assert (record.connections, record.sessions) == (1, record.mode != "close")
    assert _REPLY[case.mode] in record.log
    assert (_REPLY[case.mode] in record.told) == (record.verdict is Verdict.BOUNCED)
    assert record.days == (expected.days if record.verdict is Verdict.DEFERRED else None)
    assert _verbs(record) == [expected.dialogue if case.mode == "mail" else expected.sent]


@_cases(SPARED_RELAYS)
def test_relay_goes_on_to_a_second_mx(records: Records, case: Case) -> None:
    """RFC 5321 §5.1: a relay greeted by 521 tries the next MX unless it takes a 5 for the last word; at MAIL it is."""
    record = _record(records, case)
    expected = _RELAYS[_key(case)]
    assert record.verdict is (Verdict.BOUNCED if case.mode == "mail" else expected.greeted_spared)
    assert (record.connections, record.sessions) == (1, record.mode != "close")
    assert record.tells == (record.verdict is Verdict.BOUNCED)
    assert _verbs(record) == [expected.dialogue if case.mode == "mail" else expected.sent]


@_cases(NULL_MX_CASES)
def test_relay_does_not_connect_to_a_domain_with_a_null_mx(records: Records, case: Case) -> None:
    """RFC 7505 §1: a null MX makes a relay bounce the message without a connection to anyone."""
    record = _record(records, case)
    # OpenSMTPD before 7.5 does not know the null MX: it looks for a host without a name, and for that again and again.
    is_unaware = record.sender == "OpenSMTPD" and release(record.version) < (7, 5)
    assert record.verdict is (Verdict.DEFERRED if is_unaware else Verdict.BOUNCED)
    assert (record.connections, record.sent) == (0, [])


@_cases(REFUSED_CLIENTS)
def test_client_fails_at_once_and_shows_why(records: Records, case: Case) -> None:
    """A client without a queue ends with an error that carries the 521, and the text unless it is curl."""
    record = _record(records, case)
    expected = _CLIENTS[_key(case)]
    status, said, verbs = expected.at_mail if case.mode == "mail" else expected.greeted
    assert (record.verdict, record.status) == (Verdict.FAILED, status)
    assert (record.connections, record.sessions) == (1, record.mode != "close")
    assert said in record.told
    assert record.tells == (record.sender not in _SILENT_ABOUT_THE_TEXT)
    assert _verbs(record) == [verbs]


def test_the_table_of_the_readme_is_what_the_senders_do(records: Records) -> None:
    """The README's table, made by table.py, has the rows and cells that the same releases yield now."""
    for case in ALL:
        _require(case)
    assert_shows(_README, "senders", table(records))


def _verbs(record: Record) -> list[str]:
    """Return for each connection the verbs that came over it."""
    return [" ".join(line.split()[0].upper() for line in sent.splitlines()) for sent in record.sent]
