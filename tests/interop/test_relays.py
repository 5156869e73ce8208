"""Real relays, set up by deploy/relay/, with the real ``nullsmtpd relay`` and a real name server.

RFC 7504 §4 has the reply to recipients whose domain is known to accept no mail, RFC 7505 §4.2 that to senders, and §6
the enhanced codes. No failure of nullsmtpd is a reason to refuse mail. The table in the README of deploy/relay/ is made
from the same interviews.
"""

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from debian import SUITES
from interview import (
    BELOW,
    IN_A_LABELS,
    IN_U_LABELS,
    IN_UPPER_CASE,
    LOCAL,
    NOBODY,
    NULL_SENDER,
    RELAYED,
    SOMEBODY,
    Interview,
    Reply,
    interview,
)
from recipes import README, RECIPES, Recipe
from relay_table import relay_table
from shown import assert_shows
from support import require_root, require_tools

# These defer what they cannot look up, and no setting changes that: Postfix whenever it uses a table, Sendmail when a
# connection breaks that it has used before.
_DEFERS = {"Postfix"}
_DEFERS_WHEN_CUT_OFF = {"Postfix", "Sendmail"}

# Exim does not offer SMTPUTF8 (RFC 6531) unless told to, OpenSMTPD not at all; Sendmail takes such addresses unasked.
_TAKES_NO_UTF8 = {"Exim", "OpenSMTPD"}

# Postfix has no restriction that exempts senders in relay_domains; --except does.
_REFUSES_RELAYED_SENDERS = {"Postfix", "Postfix, with a policy service"}

_Futures = dict[tuple[str, str], Future[Interview]]  # by the recipe's heading, and the suite

_each = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.heading)


@pytest.fixture(scope="module")
def futures() -> Iterator[_Futures]:
    """Hold all interviews at once: most of each is waiting."""
    require_root()
    require_tools("ip", "nsenter", "unshare", "setpriv", "dnsmasq")
    with ThreadPoolExecutor(len(RECIPES) * len(SUITES)) as pool:
        yield {(recipe.heading, suite): pool.submit(interview, recipe, suite) for recipe in RECIPES for suite in SUITES}


@pytest.fixture(params=SUITES)
def seen(request: pytest.FixtureRequest, futures: _Futures, recipe: Recipe) -> Interview:
    """Return the replies of one relay of one suite."""
    return futures[recipe.heading, request.param].result()


def _is_refused(reply: Reply) -> bool:
    return reply.status == "556 5.1.10" and re.search(r"Domain .*\bdoes not accept mail", reply.text) is not None


@_each
@pytest.mark.parametrize("recipient", [NOBODY, IN_UPPER_CASE, IN_A_LABELS])
def test_relay_replies_556_to_a_recipient_with_a_null_mx(recipe: Recipe, seen: Interview, recipient: str) -> None:
    """RFC 7504 §4: at RCPT, however the domain is written."""
    assert _is_refused(seen.answered[recipient]), seen


@_each
def test_relay_that_takes_utf8_replies_556_to_it_too(recipe: Recipe, seen: Interview) -> None:
    """RFC 5891 §5: a name in Unicode is looked up in A-labels; a relay that takes no such address replies 501."""
    reply = seen.answered[IN_U_LABELS]
    assert reply.code == 501 if recipe.heading in _TAKES_NO_UTF8 else _is_refused(reply), seen


@_each
def test_relay_accepts_other_recipients(recipe: Recipe, seen: Interview) -> None:
    """Those with an MX, also in a domain below one with a null MX."""
    assert [seen.answered[recipient].code for recipient in (SOMEBODY, BELOW)] == [250, 250], seen


@_each
@pytest.mark.parametrize("recipient", [LOCAL, RELAYED])
def test_relay_accepts_its_own_recipients_whatever_dns_says(recipe: Recipe, seen: Interview, recipient: str) -> None:
    """RFC 5321 §4.5.1: it has to take mail for postmaster of the domains that it delivers to or relays for."""
    assert seen.answered[recipient].code == 250, seen


@_each
def test_refused_recipients_do_not_count_against_others(recipe: Recipe, seen: Interview) -> None:
    """After a dozen with a null MX, one with an MX is accepted, in the same transaction."""
    assert seen.after_many.code == 250, seen


@_each
@pytest.mark.parametrize("sender", [NOBODY, IN_A_LABELS])
def test_relay_replies_550_to_a_sender_with_a_null_mx(recipe: Recipe, seen: Interview, sender: str) -> None:
    """RFC 7505 §4.2: nobody could answer, and no bounce could be delivered; the enhanced code is X.7.27 (§6)."""
    assert seen.senders[sender].status == "550 5.7.27", seen


@_each
def test_relay_accepts_other_senders(recipe: Recipe, seen: Interview) -> None:
    """Those with an MX, the null sender, and those of its own domains whatever DNS says."""
    expected = dict.fromkeys((SOMEBODY, LOCAL, RELAYED, NULL_SENDER), 250)
    if recipe.heading in _REFUSES_RELAYED_SENDERS:
        expected[RELAYED] = 550
    assert {sender: seen.senders[sender].code for sender in expected} == expected, seen


@_each
def test_relay_refuses_nobody_while_nullsmtpd_is_stopped(recipe: Recipe, seen: Interview) -> None:
    """Every recipient is accepted, or deferred where the relay cannot do anything else."""
    expected = 451 if recipe.heading in _DEFERS else 250
    assert {reply.code for reply in seen.stopped.values()} == {expected}, seen


@_each
def test_relay_refuses_nobody_when_nullsmtpd_ends_within_a_session(recipe: Recipe, seen: Interview) -> None:
    """The next recipient is accepted, or deferred where the relay cannot do anything else."""
    expected = 451 if recipe.heading in _DEFERS_WHEN_CUT_OFF else 250
    assert seen.cut_off[SOMEBODY].code == expected, seen


@_each
def test_relay_accepts_everybody_without_dns(recipe: Recipe, seen: Interview) -> None:
    """Where no name server answers, every recipient is accepted after it was looked up."""
    assert seen.dns_failures >= len(seen.without_dns), seen
    assert {reply.code for reply in seen.without_dns.values()} == {250}, seen


def test_the_table_of_the_recipes_has_the_relays_replies(futures: _Futures) -> None:
    """The table in the README, made by relay_table.py, has the rows and cells that these releases yield."""
    made = relay_table((recipe, futures[recipe.heading, suite].result()) for recipe in RECIPES for suite in SUITES)
    assert_shows(README, "relays", made)
