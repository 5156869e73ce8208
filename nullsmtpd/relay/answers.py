"""Does a domain accept mail? From the cache, or from one DNS query for all clients that ask meanwhile."""

import asyncio
import enum
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from nullsmtpd.nullmx import DNSError, MXAnswer
from nullsmtpd.relay.counters import Counters
from nullsmtpd.runtime.log import RateLimitedLog, log

__all__ = ["FAILURE_TTL", "MAX_NEGATIVE_TTL", "MAX_TTL", "MIN_TTL", "Answers", "Finding"]

#: Seconds. A TTL of 0 allows use for the transaction under way (RFC 1035 §3.2.1), such as a message to many recipients.
MIN_TTL = 1.0

#: Seconds. RFC 8767 §4 has resolvers keep nothing for more than a week, and unbound keeps nothing for more than a day:
#: this is how long a domain that accepts mail again may still be refused, whatever its record said.
MAX_TTL = 86400.0

#: Seconds. RFC 2308 §5: one to three hours work well for names and records that do not exist.
MAX_NEGATIVE_TTL = 3600.0

#: Seconds. RFC 9520 §3.2: cache a failure for at least a second, so that a dead name server is not asked for every
#: recipient, and for at most 5 minutes.
FAILURE_TTL = 5.0


class Finding(enum.Enum):
    """What is known about a domain."""

    NULL_MX = enum.auto()
    NOT_NULL_MX = enum.auto()
    UNKNOWN = enum.auto()  # DNS gave no answer


class Answers:
    """Findings on domains, which are in the form that `nullsmtpd.nullmx.domain_of` returns.

    ``look_up``: queries DNS, and raises `DNSError`. ``cache_size``: findings that are kept; the one that was not used
    for longest is removed first. ``max_pending``: queries at once, each of which holds a file descriptor; past that a
    domain is `Finding.UNKNOWN` at once.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
        look_up: Callable[[str], Awaitable[MXAnswer]],
        *,
        cache_size: int,
        max_pending: int,
    ) -> None:
        self._loop = loop
        self._counters = counters
        self._look_up = look_up
        self._cache_size = cache_size
        self._max_pending = max_pending
        self._cache: OrderedDict[str, tuple[Finding, float]] = OrderedDict()  # with the time when it expires
        self._pending: dict[str, asyncio.Task[Finding]] = {}
        self._log = RateLimitedLog(loop.time)

    @property
    def cached(self) -> int:
        """The number of findings in the cache, including expired ones that were not used since."""
        return len(self._cache)

    @property
    def pending(self) -> int:
        """The number of queries under way."""
        return len(self._pending)

    def known(self, domain: str) -> Finding | None:
        """Return the finding if it is cached."""
        finding, expires = self._cache.get(domain, (None, 0.0))
        if expires <= self._loop.time():
            self._cache.pop(domain, None)
            return None
        self._counters.cache_hits += 1
        self._cache.move_to_end(domain)
        return finding

    async def find(self, domain: str) -> Finding:
        """Return the finding, from the cache or from DNS."""
        if finding := self.known(domain):
            return finding
        query = self._pending.get(domain)
        if query is None:
            if len(self._pending) >= self._max_pending:
                self._log("dns-failure", reason="too many queries under way")
                return Finding.UNKNOWN
            self._counters.queries += 1
            query = self._pending[domain] = self._loop.create_task(self._query(domain))
            query.add_done_callback(lambda _: self._pending.pop(domain))
        return await asyncio.shield(query)  # others may wait for it, too

    async def _query(self, domain: str) -> Finding:
        finding, ttl = Finding.UNKNOWN, FAILURE_TTL
        try:
            answer = await self._look_up(domain)
        except DNSError as error:
            self._log("dns-failure", reason=error.reason)
        except Exception as error:  # noqa: BLE001 - whatever the DNS library raises, a client waits for its reply
            log("internal-error", exception=repr(error))
        else:
            if answer.is_invalid_null_mx:
                self._counters.invalid_null_mx += 1
                reason = "the root is not the only MX, or its preference is not 0"  # RFC 7505 §3
                self._log("invalid-null-mx", domain=domain, reason=reason)
            finding = Finding.NULL_MX if answer.is_null_mx else Finding.NOT_NULL_MX
            ttl = min(max(answer.ttl, MIN_TTL), MAX_TTL if answer.records else MAX_NEGATIVE_TTL)
        self._cache[domain] = finding, self._loop.time() + ttl
        if len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return finding
