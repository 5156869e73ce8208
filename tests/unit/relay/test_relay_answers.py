"""The cache and its expiry, on a clock of the test's own, and how many DNS queries there are."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullsmtpd.nullmx import MX, DNSError, MXAnswer
from nullsmtpd.relay.answers import FAILURE_TTL, MAX_NEGATIVE_TTL, MAX_TTL, MIN_TTL, Answers
from nullsmtpd.relay.counters import Counters, Result
from nullsmtpd.runtime import log as runtime_log

NULL = (MX(0, "."),)
PLAIN = (MX(10, "mail.example"),)
FAULTY = (MX(0, "."), MX(10, "mail.example"))


class Scene:
    """Answers on a loop whose clock stands still; ``records``, ``ttl`` and ``error`` are what DNS returns."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, cache_size: int = 100, max_pending: int = 5000) -> None:
        self.now = 1000.0
        loop.time = lambda: self.now  # type: ignore[method-assign]
        self.records: tuple[MX, ...] = NULL
        self.ttl = 300.0
        self.error: Exception | None = None
        self.held: asyncio.Event | None = None
        self.asked: list[str] = []
        self.counters = Counters()
        self.answers = Answers(self.counters, self.look_up, cache_size=cache_size, max_pending=max_pending)

    async def look_up(self, domain: str) -> MXAnswer:
        self.asked.append(domain)
        if self.held:
            await self.held.wait()
        if self.error:
            raise self.error
        return MXAnswer(domain, self.records, exists=True, ttl=int(self.ttl))


def play(scene: Callable[[Scene], Awaitable[None]], **given: int) -> Scene:
    """Run a scene on a loop of its own."""

    async def run() -> Scene:
        played = Scene(asyncio.get_running_loop(), **given)
        await scene(played)
        return played

    coroutine: Coroutine[Any, Any, Scene] = run()
    return asyncio.run(coroutine)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 10), st.booleans(), st.floats(0, 5)), max_size=60))
def test_the_cache_is_bounded_and_no_finding_outlives_its_ttl(steps: list[tuple[str, int, bool, float]]) -> None:
    """Invariant: what is known is what DNS returned last, within its TTL; there are never more than 3 findings."""

    async def scene(it: Scene) -> None:
        truth: dict[str, tuple[float, Result]] = {}
        for domain, ttl, is_null, pause in steps:
            known = it.answers.known(domain)
            it.records, it.ttl = NULL if is_null else PLAIN, ttl
            finding = await it.answers.find(domain)
            if known is None:
                truth[domain] = it.now + ttl, finding
            expires, expected = truth[domain]
            assert (finding, known or expected, it.now < expires) == (expected, expected, True)
            assert it.answers.gauges()["cached"] <= 3
            it.now += pause

    play(scene, cache_size=3)


def test_the_finding_that_was_not_used_for_longest_is_removed_first() -> None:
    """A domain in use stays while strangers come and go."""

    async def scene(it: Scene) -> None:
        await it.answers.find("used.example")
        for number in range(100):
            await it.answers.find(f"{number}.example")
            assert it.answers.known("used.example") is Result.NULL_MX
        assert it.answers.gauges()["cached"] == 3
        assert it.answers.known("97.example") is None

    play(scene, cache_size=3)


@pytest.mark.parametrize(
    ("records", "ttl", "seconds"),
    [
        (NULL, 300, 300),
        (NULL, 0, MIN_TTL),
        (NULL, 2**31 - 1, MAX_TTL),
        (PLAIN, 300, 300),
        (PLAIN, 2**31 - 1, MAX_TTL),
        ((), 300, 300),
        ((), 2**31 - 1, MAX_NEGATIVE_TTL),
    ],
)
def test_an_answer_holds_for_its_ttl_within_bounds(records: tuple[MX, ...], ttl: int, seconds: float) -> None:
    """Up to the last moment it is known, then DNS is asked again; bounded below and above."""

    async def scene(it: Scene) -> None:
        it.records, it.ttl = records, ttl
        expected = Result.NULL_MX if records == NULL else Result.NOT_NULL_MX
        assert await it.answers.find("a.example") is expected
        it.now += seconds - 0.001
        assert it.answers.known("a.example") is expected
        it.now += 0.001
        assert it.answers.known("a.example") is None

    play(scene)


@pytest.mark.parametrize("error", [DNSError("a.example", "SERVFAIL"), RuntimeError("a mistake in a library")])
def test_a_failure_is_known_for_seconds_only(error: Exception) -> None:
    """It spares a dead name server a question for every recipient (RFC 9520 §3.2), and then DNS is asked again."""

    async def scene(it: Scene) -> None:
        it.error = error
        assert await it.answers.find("a.example") is Result.DNS_FAILURE
        assert it.answers.known("a.example") is Result.DNS_FAILURE
        it.now += FAILURE_TTL
        assert it.answers.known("a.example") is None
        it.error = None
        assert await it.answers.find("a.example") is Result.NULL_MX

    assert play(scene).asked == ["a.example"] * 2
    assert 1 <= FAILURE_TTL <= 300


@pytest.mark.parametrize("fails", [False, True])
def test_a_thousand_who_ask_at_once_make_one_question(*, fails: bool) -> None:
    """All of them get what the one question brought, also when it fails."""

    async def scene(it: Scene) -> None:
        it.held = asyncio.Event()
        it.error = DNSError("a.example", "SERVFAIL") if fails else None
        crowd = [asyncio.ensure_future(it.answers.find("a.example")) for _ in range(1000)]
        await asyncio.sleep(0)
        assert it.answers.gauges()["pending"] == 1
        it.held.set()
        assert set(await asyncio.gather(*crowd)) == {Result.DNS_FAILURE if fails else Result.NULL_MX}
        assert it.answers.gauges()["pending"] == 0

    played = play(scene)
    assert played.asked == ["a.example"]
    assert played.counters.queries == 1


def test_a_stampede_when_an_entry_expires_is_one_question_too() -> None:
    """Those who come between the end of one answer and the next share a question."""

    async def scene(it: Scene) -> None:
        await it.answers.find("a.example")
        for _ in range(10):
            it.now += 300
            assert it.answers.known("a.example") is None
            await asyncio.gather(*(it.answers.find("a.example") for _ in range(100)))

    assert len(play(scene).asked) == 11


def test_questions_under_way_are_bounded() -> None:
    """Past the bound a name is unknown at once, is not remembered as such, and no question is made."""

    async def scene(it: Scene) -> None:
        it.held = asyncio.Event()
        crowd = [asyncio.ensure_future(it.answers.find(f"{number}.example")) for number in range(3)]
        await asyncio.sleep(0)
        assert await it.answers.find("one-too-many.example") is Result.DNS_FAILURE
        assert it.answers.known("one-too-many.example") is None
        it.held.set()
        await asyncio.gather(*crowd)
        assert await it.answers.find("one-too-many.example") is Result.NULL_MX

    assert play(scene, max_pending=3).asked == ["0.example", "1.example", "2.example", "one-too-many.example"]


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """Return the events that are logged, with their domains or reasons."""
    lines: list[tuple[str, object]] = []
    monkeypatch.setattr(
        runtime_log, "log", lambda event, **values: lines.append((event, values.get("domain", values["reason"])))
    )
    return lines


def test_an_invalid_null_mx_is_counted_each_time_and_logged_once_a_minute(logged: list[tuple[str, object]]) -> None:
    """RFC 7505 §3. Whoever owns a domain can make any number of them, which must not fill the log."""

    async def scene(it: Scene) -> None:
        it.records = FAULTY
        for number in range(121):
            assert await it.answers.find(f"{number}.example") is Result.NOT_NULL_MX
            it.now += 1

    assert play(scene).counters.invalid_null_mx == 121
    assert logged == [("invalid-null-mx", f"{number}.example") for number in (0, 60, 120)]


def test_failures_are_logged_once_a_minute(logged: list[tuple[str, object]]) -> None:
    """With DNS dead the log does not grow with every recipient, and does not fall silent either."""

    async def scene(it: Scene) -> None:
        it.error = DNSError("a.example", "timed out")
        for number in range(121):
            await it.answers.find(f"{number}.example")
            it.now += 1

    play(scene)
    assert logged == [("dns-failure", "timed out")] * 3
