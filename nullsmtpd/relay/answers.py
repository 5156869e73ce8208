"""Whether a domain accepts no mail: from the cache, or from one question to DNS for all who want to know."""

import asyncio
import enum
from collections.abc import Awaitable, Callable

from nullsmtpd.nullmx import DNSError, MXAnswer
from nullsmtpd.relay.cache import Cache
from nullsmtpd.relay.counters import Counters
from nullsmtpd.runtime.log import log

__all__ = ["FAILURE_SECONDS", "MAX_NEGATIVE_SECONDS", "MAX_SECONDS", "MIN_SECONDS", "Answers", "Finding"]

#: A TTL of 0 allows use for the transaction under way (RFC 1035 §3.2.1), and a message to a hundred recipients is one.
MIN_SECONDS = 1.0

#: RFC 8767 §4 has resolvers keep nothing for more than a week, and unbound does so for a day at most: a domain that
#: takes mail again is refused for no longer than that, whatever its record said.
MAX_SECONDS = 86400.0

#: RFC 2308 §5: one to three hours work well for what does not exist.
MAX_NEGATIVE_SECONDS = 3600.0

#: RFC 9520 §3.2: a failure is kept for at least a second, so that a dead name server is not asked for every recipient,
#: and at most 5 minutes. Nobody has to wait for the next message to be judged again.
FAILURE_SECONDS = 5.0

#: A domain of hostile make can have faulty sets at any number of names. So many of them are told of, in all.
MAX_TOLD = 1000

#: Seconds between two log lines about DNS that fails; the counter has them all.
FAILURE_LOG_SECONDS = 60.0


class Finding(enum.Enum):
    """What is known of a domain."""

    NULL_MX = enum.auto()
    NOT_NULL = enum.auto()
    UNKNOWN = enum.auto()  # DNS did not tell


class Answers:
    """Findings on domains as `nullsmtpd.nullmx.domain_of` writes them.

    ``look_up``: asks DNS, such as `nullsmtpd.nullmx.look_up_mx`, and raises `DNSError`. ``timeout``: the most seconds
    that an answer takes. ``entries``: how many findings are kept. ``limit``: how many questions may be under way, each
    of which holds a descriptor; past that a domain is UNKNOWN at once.
    """

    def __init__(  # noqa: PLR0913 - what an answer depends on
        self,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
        look_up: Callable[[str], Awaitable[MXAnswer]],
        *,
        timeout: float,
        entries: int,
        limit: int,
    ) -> None:
        """Know nothing yet."""
        self.limit = limit
        self._loop = loop
        self._counters = counters
        self._look_up = look_up
        self._timeout = timeout
        self._cache: Cache[Finding] = Cache(entries, loop.time)
        self._asked: dict[str, asyncio.Future[Finding]] = {}
        self._told: set[str] = set()
        self._next_failure_log = 0.0

    @property
    def cached(self) -> int:
        """Return how many findings are kept."""
        return len(self._cache)

    @property
    def asking(self) -> int:
        """Return how many questions are under way."""
        return len(self._asked)

    def known(self, domain: str) -> Finding | None:
        """Return the finding if it is cached."""
        return self._cache.get(domain)

    def ask(self, domain: str) -> "asyncio.Future[Finding]":
        """Return the finding to come; it does not raise, and is for all who ask: do not cancel it."""
        if under_way := self._asked.get(domain):
            return under_way
        if len(self._asked) >= self.limit:
            self._log_failure("too many questions under way")
            return _done(self._loop, Finding.UNKNOWN)
        self._counters.questions += 1
        question = self._asked[domain] = self._loop.create_task(self._question(domain))
        question.add_done_callback(lambda _: self._asked.pop(domain))
        return question

    async def _question(self, domain: str) -> Finding:
        finding, seconds = Finding.UNKNOWN, FAILURE_SECONDS
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._look_up(domain)
            finding, seconds = self._judge(answer)
        except DNSError as error:
            self._log_failure(error.reason)
        except TimeoutError:
            self._log_failure("timed out")
        except Exception as error:  # noqa: BLE001 - whatever the DNS library meets with, a client waits for its answer
            log("internal-error", exception=type(error).__name__)
        self._cache.put(domain, finding, seconds)
        return finding

    def _judge(self, answer: MXAnswer) -> tuple[Finding, float]:
        """Return the finding and for how many seconds it holds."""
        if answer.is_faulty_null_mx:
            self._counters.faulty_null_mx += 1
            self._tell(answer.domain)
        longest = MAX_SECONDS if answer.records else MAX_NEGATIVE_SECONDS
        seconds = min(max(answer.ttl, MIN_SECONDS), longest)
        return Finding.NULL_MX if answer.is_null_mx else Finding.NOT_NULL, seconds

    def _tell(self, domain: str) -> None:
        """Log once that a domain tries to say "no mail" and does not."""
        if domain in self._told or len(self._told) >= MAX_TOLD:
            return
        self._told.add(domain)
        log("faulty-null-mx", domain=domain, because="the root is not its only MX, or not of preference 0")
        if len(self._told) == MAX_TOLD:
            log("faulty-null-mx-enough", told=MAX_TOLD)

    def _log_failure(self, reason: str) -> None:
        now = self._loop.time()
        if now >= self._next_failure_log:
            self._next_failure_log = now + FAILURE_LOG_SECONDS
            log("dns-failure", because=reason)


def _done(loop: asyncio.AbstractEventLoop, finding: Finding) -> "asyncio.Future[Finding]":
    future: asyncio.Future[Finding] = loop.create_future()
    future.set_result(finding)
    return future
