"""What is the reply to a request? From the cache, or from one DNS query for all clients that ask meanwhile."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection

from nullsmtpd.nullmx import DNSError, DomainError, MXAnswer, domain_of
from nullsmtpd.relay.counters import Counters, Result
from nullsmtpd.runtime.log import RateLimitedLog, log

__all__ = ["Answers", "is_excepted", "key_domain"]

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
    """Replies to requests, and what is known about domains in the form that `nullsmtpd.nullmx.domain_of` returns.

    ``look_up``: queries DNS, and raises `DNSError`. ``cache_size``: results that are kept; the one that was not used
    for longest is removed first. ``max_pending``: queries at once, each of which holds a file descriptor; past that a
    domain is `Result.DNS_FAILURE` at once. ``exceptions``: see `is_excepted`.
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
        self._cache: OrderedDict[str, tuple[Result, float]] = OrderedDict()  # with the time when it expires
        self._pending: dict[str, asyncio.Task[Result]] = {}
        self._log = RateLimitedLog(self._loop.time)

    def gauges(self) -> dict[str, int]:
        """Return how many queries are under way, and how many results are cached, expired ones included."""
        return {"pending": len(self._pending), "cached": len(self._cache)}

    async def reply(self, request: bytes) -> bytes:
        """Return the reply to a request, and count its result."""
        name, space, key = request.partition(b" ")
        refusal = REFUSALS.get(name) if space else None
        result = Result.DNS_FAILURE  # also when the client leaves before DNS answers
        self._counters.requests += 1
        try:
            result = Result.UNKNOWN_MAP if refusal is None else await self._find_key(key)
        finally:
            self._counters.results[result] += 1
        if refusal is None:
            return UNKNOWN_MAP
        return refusal if result is Result.NULL_MX else NOT_FOUND

    async def _find_key(self, key: bytes) -> Result:
        domain = key_domain(key)
        if domain is None:
            return Result.NO_DOMAIN
        if is_excepted(domain, self._exceptions):
            return Result.EXCEPTED
        return await self.find(domain)

    def known(self, domain: str) -> Result | None:
        """Return the result if it is cached."""
        result, expires = self._cache.get(domain, (None, 0.0))
        if expires <= self._loop.time():
            self._cache.pop(domain, None)
            return None
        self._counters.cache_hits += 1
        self._cache.move_to_end(domain)
        return result

    async def find(self, domain: str) -> Result:
        """Return the result, from the cache or from DNS."""
        if result := self.known(domain):
            return result
        query = self._pending.get(domain)
        if query is None:
            if len(self._pending) >= self._max_pending:
                self._log("dns-failure", reason="too many queries under way")
                return Result.DNS_FAILURE
            self._counters.queries += 1
            query = self._pending[domain] = self._loop.create_task(self._query(domain))
            query.add_done_callback(lambda _: self._pending.pop(domain))
        return await asyncio.shield(query)  # others may wait for it, too

    async def _query(self, domain: str) -> Result:
        result, ttl = Result.DNS_FAILURE, FAILURE_TTL
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
            result = Result.NULL_MX if answer.is_null_mx else Result.NOT_NULL_MX
            ttl = min(max(answer.ttl, MIN_TTL), MAX_TTL if answer.records else MAX_NEGATIVE_TTL)
        self._cache[domain] = result, self._loop.time() + ttl
        if len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return result
