"""What is the reply to a request? From the cache, or from one DNS query for all clients that ask meanwhile."""

import asyncio
import enum
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection

from nullsmtpd.nullmx import DNSError, DomainError, MXAnswer, domain_of
from nullsmtpd.relay.counters import Counters
from nullsmtpd.runtime.log import RateLimitedLog, log

__all__ = ["Answers", "Finding", "is_excepted", "key_domain"]

#: The reply for a domain with a null MX, by map.
REFUSALS = {
    # RFC 7504 §4 has the code and the text, RFC 7505 §6 the enhanced code.
    b"nullmx": b"OK 556 5.1.10 Domain does not accept mail",
    # RFC 7505 §4.2 and §6.
    b"nullmxsender": b"OK 550 5.7.27 Sender address has null MX",
}

#: The mail server goes on as if it had not asked.
NOT_FOUND = b"NOTFOUND "

#: The operator's mistake. NOTFOUND would hide a wrong name in the mail server's configuration; on PERM Postfix logs an
#: error and defers the mail (451), so that the first test shows it and no mail is lost.
UNKNOWN_MAP = b"PERM unknown map; the maps are nullmx and nullmxsender"

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


def key_domain(key: bytes) -> str | None:
    """Return the domain that a key is about, in A-labels and lower case; None if there is none.

    A key is an address or a domain. Without an ``@`` a single label is the local part of an address without a domain,
    such as ``postmaster``, which mail servers look up, too; with an ``@`` it may be a top-level domain.
    """
    try:
        domain = domain_of(key.decode())  # SMTPUTF8 (RFC 6531) addresses are UTF-8
    except (UnicodeDecodeError, DomainError):
        return None
    return domain if "." in domain or b"@" in key else None


def is_excepted(domain: str, exceptions: Collection[str]) -> bool:
    """Return whether ``exceptions`` has the domain, or one above it with a dot in front."""
    parents = (domain[dot:] for dot, octet in enumerate(domain) if octet == ".")
    return domain in exceptions or any(parent in exceptions for parent in parents)


class Answers:
    """Findings on domains, which are in the form that `nullsmtpd.nullmx.domain_of` returns, and replies.

    ``look_up``: queries DNS, and raises `DNSError`. ``cache_size``: findings that are kept; the one that was not used
    for longest is removed first. ``max_pending``: queries at once, each of which holds a file descriptor; past that a
    domain is `Finding.UNKNOWN` at once. ``exceptions``: see `is_excepted`.
    """

    def __init__(
        self,
        counters: Counters,
        look_up: Callable[[str], Awaitable[MXAnswer]],
        *,
        cache_size: int,
        max_pending: int,
        exceptions: Collection[str] = (),
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._counters = counters
        self._look_up = look_up
        self._cache_size = cache_size
        self._max_pending = max_pending
        self._exceptions = exceptions
        self._cache: OrderedDict[str, tuple[Finding, float]] = OrderedDict()  # with the time when it expires
        self._pending: dict[str, asyncio.Task[Finding]] = {}
        self._log = RateLimitedLog(self._loop.time)

    @property
    def cached(self) -> int:
        """The number of findings in the cache, including expired ones that were not used since."""
        return len(self._cache)

    @property
    def pending(self) -> int:
        """The number of queries under way."""
        return len(self._pending)

    async def reply(self, request: bytes) -> bytes:
        """Return the reply to a request, and count its result."""
        self._counters.requests += 1
        name, space, key = request.partition(b" ")
        refusal = REFUSALS.get(name) if space else None
        if refusal is None:
            self._counters.unknown_maps += 1
            return UNKNOWN_MAP
        domain = key_domain(key)
        if domain is None:
            self._counters.not_domains += 1
            return NOT_FOUND
        if is_excepted(domain, self._exceptions):
            self._counters.excepted += 1
            return NOT_FOUND
        finding = Finding.UNKNOWN  # also when the client leaves before DNS answers
        try:
            finding = await self.find(domain)
        finally:
            self._counters.null_mx += finding is Finding.NULL_MX
            self._counters.not_null_mx += finding is Finding.NOT_NULL_MX
            self._counters.dns_failures += finding is Finding.UNKNOWN
        return refusal if finding is Finding.NULL_MX else NOT_FOUND

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
