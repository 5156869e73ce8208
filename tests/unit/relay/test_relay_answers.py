"""What is remembered and for how long, on a clock that the tests turn, and that DNS is asked once for all who ask."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullsmtpd.nullmx import MX, DNSError, MXAnswer
from nullsmtpd.relay import answers as answers_module
from nullsmtpd.relay.answers import (
    FAILURE_SECONDS,
    MAX_NEGATIVE_SECONDS,
    MAX_SECONDS,
    MAX_TOLD,
    MIN_SECONDS,
    Answers,
    Finding,
)
from nullsmtpd.relay.cache import Cache
from nullsmtpd.relay.counters import Counters

NULL = (MX(0, "."),)
PLAIN = (MX(10, "mail.example"),)
FAULTY = (MX(0, "."), MX(10, "mail.example"))


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Scene:
    """Answers on a loop whose clock stands still; ``records``, ``ttl`` and ``error`` are what DNS says."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, entries: int = 100, limit: int = 5000) -> None:
        self.clock = Clock()
        loop.time = self.clock  # type: ignore[method-assign]
        self.records: tuple[MX, ...] = NULL
        self.ttl = 300
        self.error: Exception | None = None
        self.held: asyncio.Event | None = None
        self.asked: list[str] = []
        self.counters = Counters()
        self.answers = Answers(loop, self.counters, self.look_up, timeout=5.0, entries=entries, limit=limit)

    async def look_up(self, domain: str) -> MXAnswer:
        self.asked.append(domain)
        if self.held:
            await self.held.wait()
        if self.error:
            raise self.error
        return MXAnswer(domain, self.records, exists=True, ttl=self.ttl)


def play(scene: Callable[[Scene], Awaitable[None]], **given: int) -> Scene:
    """Run a scene on a loop of its own."""

    async def run() -> Scene:
        played = Scene(asyncio.get_running_loop(), **given)
        await scene(played)
        return played

    coroutine: Coroutine[Any, Any, Scene] = run()
    return asyncio.run(coroutine)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 10), st.floats(0, 5)), max_size=60))
def test_a_cache_holds_no_more_than_its_limit_and_nothing_for_too_long(steps: list[tuple[str, float, float]]) -> None:
    """Invariant: what comes out was put in last for that name, within its time, and there are never more than 3."""
    clock = Clock()
    cache: Cache[int] = Cache(3, clock)
    truth: dict[str, tuple[float, int]] = {}
    for number, (name, seconds, pause) in enumerate(steps):
        found = cache.get(name)
        if found is not None:
            until, value = truth[name]
            assert (found, clock.now < until) == (value, True)
        cache.put(name, number, seconds)
        truth[name] = (clock.now + seconds, number)
        assert len(cache) <= 3
        clock.now += pause


def test_what_was_not_asked_for_longest_goes_first() -> None:
    """A name in use stays while strangers come and go."""
    cache: Cache[int] = Cache(3, Clock())
    cache.put("used", 0, 60)
    for number in range(100):
        cache.put(f"stranger{number}", number, 60)
        assert cache.get("used") == 0
    assert len(cache) == 3
    assert cache.get("stranger97") is None


@pytest.mark.parametrize(
    ("records", "ttl", "seconds"),
    [
        (NULL, 300, 300),
        (NULL, 0, MIN_SECONDS),
        (NULL, 2**31 - 1, MAX_SECONDS),
        (PLAIN, 300, 300),
        (PLAIN, 2**31 - 1, MAX_SECONDS),
        ((), 300, 300),
        ((), 2**31 - 1, MAX_NEGATIVE_SECONDS),
    ],
)
def test_an_answer_holds_for_its_ttl_within_bounds(records: tuple[MX, ...], ttl: int, seconds: float) -> None:
    """Up to the last moment it is known, then DNS is asked again; bounded below and above."""

    async def scene(it: Scene) -> None:
        it.records, it.ttl = records, ttl
        expected = Finding.NULL_MX if records == NULL else Finding.NOT_NULL
        assert await it.answers.ask("a.example") is expected
        it.clock.now += seconds - 0.001
        assert it.answers.known("a.example") is expected
        it.clock.now += 0.001
        assert it.answers.known("a.example") is None

    play(scene)


@pytest.mark.parametrize("error", [DNSError("a.example", "SERVFAIL"), RuntimeError("a mistake in a library")])
def test_a_failure_is_known_for_seconds_only(error: Exception) -> None:
    """It spares a dead name server a question for every recipient (RFC 9520 §3.2), and then DNS is asked again."""

    async def scene(it: Scene) -> None:
        it.error = error
        assert await it.answers.ask("a.example") is Finding.UNKNOWN
        assert it.answers.known("a.example") is Finding.UNKNOWN
        it.clock.now += FAILURE_SECONDS
        assert it.answers.known("a.example") is None
        it.error = None
        assert await it.answers.ask("a.example") is Finding.NULL_MX

    assert play(scene).asked == ["a.example"] * 2
    assert 1 <= FAILURE_SECONDS <= 300


@pytest.mark.parametrize("fails", [False, True])
def test_a_thousand_who_ask_at_once_make_one_question(*, fails: bool) -> None:
    """All of them get what the one question brought, also when it fails."""

    async def scene(it: Scene) -> None:
        it.held = asyncio.Event()
        it.error = DNSError("a.example", "SERVFAIL") if fails else None
        crowd = [it.answers.ask("a.example") for _ in range(1000)]
        await asyncio.sleep(0)
        assert it.answers.asking == 1
        it.held.set()
        assert set(await asyncio.gather(*crowd)) == {Finding.UNKNOWN if fails else Finding.NULL_MX}
        assert it.answers.asking == 0

    played = play(scene)
    assert played.asked == ["a.example"]
    assert played.counters.questions == 1


def test_a_stampede_when_an_entry_expires_is_one_question_too() -> None:
    """Those who come between the end of one answer and the next share a question."""

    async def scene(it: Scene) -> None:
        await it.answers.ask("a.example")
        for _ in range(10):
            it.clock.now += 300
            assert it.answers.known("a.example") is None
            await asyncio.gather(*(it.answers.ask("a.example") for _ in range(100)))

    assert len(play(scene).asked) == 11


def test_questions_under_way_are_bounded() -> None:
    """Past the bound a name is unknown at once, is not remembered as such, and no question is made."""

    async def scene(it: Scene) -> None:
        it.held = asyncio.Event()
        crowd = [it.answers.ask(f"{number}.example") for number in range(3)]
        assert await it.answers.ask("one-too-many.example") is Finding.UNKNOWN
        assert it.answers.known("one-too-many.example") is None
        it.held.set()
        await asyncio.gather(*crowd)
        assert await it.answers.ask("one-too-many.example") is Finding.NULL_MX

    assert play(scene, limit=3).asked == ["0.example", "1.example", "2.example", "one-too-many.example"]


def test_silence_of_the_library_itself_ends_with_the_timeout() -> None:
    """The deadline holds though what asks DNS never returns."""

    async def never(domain: str) -> MXAnswer:
        await asyncio.Event().wait()
        raise AssertionError

    async def run() -> Finding:
        loop = asyncio.get_running_loop()
        return await Answers(loop, Counters(), never, timeout=0.01, entries=1, limit=1).ask("a.example")

    assert asyncio.run(run()) is Finding.UNKNOWN


def test_a_faulty_set_is_counted_each_time_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log names the domain once, and after a bounded number of domains it names no more."""
    told: list[tuple[str, object]] = []
    monkeypatch.setattr(answers_module, "log", lambda event, **values: told.append((event, values.get("domain"))))

    async def scene(it: Scene) -> None:
        it.records = FAULTY
        for _ in range(3):
            assert await it.answers.ask("a.example") is Finding.NOT_NULL
            it.clock.now += 300
        for number in range(2 * MAX_TOLD):
            await it.answers.ask(f"{number}.example")

    assert play(scene).counters.faulty_null_mx == 2 * MAX_TOLD + 3
    assert told[:2] == [("faulty-null-mx", "a.example"), ("faulty-null-mx", "0.example")]
    assert told[-1] == ("faulty-null-mx-enough", None)
    assert len(told) == MAX_TOLD + 1


def test_failures_are_told_of_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """With DNS dead the log does not grow with every recipient, and does not fall silent either."""
    told: list[object] = []
    monkeypatch.setattr(answers_module, "log", lambda event, **values: told.append((event, values)))

    async def scene(it: Scene) -> None:
        it.error = DNSError("a.example", "timed out")
        for number in range(121):
            await it.answers.ask(f"{number}.example")
            it.clock.now += 1

    play(scene)
    assert told == [("dns-failure", {"because": "timed out"})] * 3
