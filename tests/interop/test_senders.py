"""Real senders, each with one real message for a host where nullsmtpd answers.

RFC 7504 §3 leaves to the sender what it makes of 521 at connection opening; these tests say what each one does, judged
by its own log, its queue and the mailbox of the message's author. The README's table is the same records: see table.py.
"""

import re

import pytest
from attempt import TEXT, attempt
from conftest import require_root, require_tools
from network import NULL_MX, SPARED
from senders import CLIENTS, RELAYS, Client, Relay, Verdict

# What becomes of the message, the same if there is a second MX that works, and what is said after the greeting.
_EXPECTED = {
    "Postfix": (Verdict.DEFERRED, Verdict.DELIVERED, "QUIT\r\n"),
    "Postfix, `smtp_skip_5xx_greeting=no`": (Verdict.BOUNCED, Verdict.BOUNCED, "QUIT\r\n"),
    "Exim": (Verdict.BOUNCED, Verdict.DELIVERED, "QUIT\r\n"),
    "Sendmail": (Verdict.BOUNCED, Verdict.DELIVERED, "QUIT\r\n"),
    "OpenSMTPD": (Verdict.DEFERRED, Verdict.DELIVERED, ""),
}

# Exit status, what the user reads, and what is said after the greeting.
_FAILURE = {
    "smtplib": (1, f"smtplib.SMTPConnectError: (521, b'{TEXT}')", ""),
    "curl": (8, f"< 521 {TEXT}", ""),
    "swaks": (21, f"<** 521 {TEXT}", "QUIT\r\n"),
}

_relays = pytest.mark.parametrize("relay", RELAYS, ids=lambda relay: relay.name)
_clients = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)


@pytest.fixture(autouse=True)
def _needs() -> None:
    require_root()
    require_tools("ip", "nsenter", "unshare", "dnsmasq")


@pytest.fixture
def _needs_apt() -> None:
    require_tools("apt-get", "dpkg-query", "debconf-set-selections", "tar")


@pytest.mark.usefixtures("_needs_apt")
@_relays
def test_relay_bounces_at_once_or_keeps_trying(relay: Relay) -> None:
    """A relay bounces the message at once and shows its author the text, or defers it and shows nothing."""
    record = attempt(relay)
    verdict, _, sent = _EXPECTED[relay.name]
    assert record.verdict is verdict
    assert record.connections == 1
    assert TEXT in record.log
    assert record.tells == (record.verdict is Verdict.BOUNCED)
    assert record.sent == [sent]


@pytest.mark.usefixtures("_needs_apt")
@_relays
def test_relay_goes_on_to_a_second_mx(relay: Relay) -> None:
    """RFC 5321 §5.1: a relay refused by the first MX tries the next, unless it takes the 5 for the last word."""
    record = attempt(relay, SPARED)
    _, verdict, sent = _EXPECTED[relay.name]
    assert record.verdict is verdict
    assert (record.connections, record.sent) == (1, [sent])


@pytest.mark.usefixtures("_needs_apt")
@_relays
def test_relay_does_not_connect_to_a_domain_with_a_null_mx(relay: Relay) -> None:
    """RFC 7505 §1: a null MX makes a relay bounce the message without a connection to anyone."""
    record = attempt(relay, NULL_MX)
    # OpenSMTPD before 7.5 does not know the null MX: it looks for a host without a name, and for that again and again.
    is_unaware = relay.name == "OpenSMTPD" and _release(record.version) < (7, 5)
    assert record.verdict is (Verdict.DEFERRED if is_unaware else Verdict.BOUNCED)
    assert (record.connections, record.sent) == (0, [])


@_clients
def test_client_fails_at_once_and_shows_the_text(client: Client) -> None:
    """A client without a queue ends with an error that carries the 521 and its text."""
    if client.name != "smtplib":
        require_tools(client.name)
    record = attempt(client)
    status, said, sent = _FAILURE[client.name]
    assert (record.verdict, record.status) == (Verdict.FAILED, status)
    assert record.connections == 1
    assert said in record.told
    assert record.sent == [sent]


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
