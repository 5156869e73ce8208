"""Real relays, set up after deploy/relay/, with the real ``nullsmtpd relay`` and a real name server.

RFC 7504 §4 has the reply of a relay that knows that a domain takes no mail, and RFC 7505 §6 its enhanced code. No
failure of ours is a reason to refuse mail. The table in the READMEs is made from the same interviews.
"""

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from interview import BELOW, IN_A_LABELS, IN_U_LABELS, IN_UPPER_CASE, NOBODY, SOMEBODY, Interview, Reply, interview
from recipes import READMES, RECIPES, Recipe
from relay_table import relay_table
from shown import assert_shows
from support import require_root, require_tools

# They put off what they cannot look up, and no setting changes that: Postfix whenever it asks a table, Sendmail when a
# connection breaks that it has asked over before.
_DEFERS = {"Postfix"}
_DEFERS_WHEN_CUT_OFF = {"Postfix", "Sendmail"}

# Exim does not offer SMTPUTF8 (RFC 6531) unless told to, OpenSMTPD not at all; Sendmail takes it unasked.
_TAKES_NO_UTF8 = {"Exim", "OpenSMTPD"}

_Futures = dict[str, Future[Interview]]  # by the recipe's heading

_each = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.heading)


@pytest.fixture(scope="module")
def futures() -> Iterator[_Futures]:
    """Hold all interviews at a time: most of each is waiting."""
    require_root()
    require_tools("ip", "nsenter", "unshare", "setpriv", "dnsmasq")
    with ThreadPoolExecutor(len(RECIPES)) as pool:
        yield {recipe.heading: pool.submit(interview, recipe) for recipe in RECIPES}


@pytest.fixture
def seen(futures: _Futures, recipe: Recipe) -> Interview:
    """Return what one relay said."""
    return futures[recipe.heading].result()


def _is_refused(reply: Reply) -> bool:
    return reply.status == "556 5.1.10" and re.search(r"Domain .*\bdoes not accept mail", reply.text) is not None


@_each
@pytest.mark.parametrize("recipient", [NOBODY, IN_UPPER_CASE, IN_A_LABELS])
def test_relay_says_556_for_a_null_mx(recipe: Recipe, seen: Interview, recipient: str) -> None:
    """RFC 7504 §4: a domain that is known to take no mail is refused at RCPT, however its name is written."""
    assert _is_refused(seen.answered[recipient]), seen


@_each
def test_relay_that_takes_utf8_says_556_for_it_too(recipe: Recipe, seen: Interview) -> None:
    """RFC 5891 §5: a name in Unicode is the one in DNS; where the relay takes no such address, that is what it says."""
    reply = seen.answered[IN_U_LABELS]
    assert reply.code == 501 if recipe.heading in _TAKES_NO_UTF8 else _is_refused(reply), seen


@_each
def test_relay_accepts_other_recipients(recipe: Recipe, seen: Interview) -> None:
    """A domain with an MX is accepted, also below one with a null MX."""
    assert [seen.answered[recipient].code for recipient in (SOMEBODY, BELOW)] == [250, 250], seen


@_each
def test_relay_refuses_nobody_while_nullsmtpd_is_stopped(recipe: Recipe, seen: Interview) -> None:
    """Every recipient is accepted, or put off where the relay knows nothing else."""
    expected = 451 if recipe.heading in _DEFERS else 250
    assert {reply.code for reply in seen.stopped.values()} == {expected}, seen


@_each
def test_relay_refuses_nobody_when_nullsmtpd_ends_within_a_session(recipe: Recipe, seen: Interview) -> None:
    """The next recipient is accepted, or put off where the relay knows nothing else."""
    expected = 451 if recipe.heading in _DEFERS_WHEN_CUT_OFF else 250
    assert seen.cut_off[SOMEBODY].code == expected, seen


@_each
def test_relay_accepts_everybody_without_dns(recipe: Recipe, seen: Interview) -> None:
    """Where no name server answers, every recipient is accepted, after it was asked about."""
    assert seen.dns_failures == len(seen.without_dns), seen
    assert {reply.code for reply in seen.without_dns.values()} == {250}, seen


def test_the_table_of_the_recipes_is_what_the_relays_say(futures: _Futures) -> None:
    """The table in both READMEs, made by relay_table.py, has the rows and cells that the same releases yield now."""
    made = list(relay_table((recipe, futures[recipe.heading].result()) for recipe in RECIPES))
    for readme in READMES:
        assert_shows(readme, "relays", made)
