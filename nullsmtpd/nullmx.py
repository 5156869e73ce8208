"""What a domain says in DNS about the mail it takes: its MX set, and whether that is a null MX (RFC 7505).

    if not await accepts_mail("example.org"):
        ...  # 556 5.1.10 Domain does not accept mail

It takes the distribution's extra ``relay``: dnspython asks, idna turns what people write into what DNS has.
"""

import ipaddress
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from nullsmtpd.runtime.sockets import parse_address

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine

    import dns.asyncresolver
    import dns.message
    import dns.resolver
    import dns.rrset

__all__ = [
    "MX",
    "TIMEOUT",
    "DNSError",
    "DomainError",
    "MXAnswer",
    "MissingExtraError",
    "accepts_mail",
    "domain_of",
    "load_extra",
    "look_up_addresses",
    "look_up_mx",
    "need_extra",
    "resolver_address",
]

#: Seconds for one question. A stub resolver asks again after 2, so this is enough for two lost datagrams; and a client
#: at RCPT, which waits for 5 minutes (RFC 5321 §4.5.3.2.3), notices nothing.
TIMEOUT = 5.0

#: RFC 1035 §2.3.4: 255 octets on the wire are this many characters without the last dot.
MAX_DOMAIN = 253

_ROOT = "."
_DNS_PORT = 53

# RFC 1035 §2.3.4: 63 octets a label. RFC 5321 §2.3.5 has letters, digits and hyphens; the underscore, which some
# domains that take mail have all the same, is for DNS to judge.
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_DOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")

# Questions that DNS has not answered yet.
_under_way: set["asyncio.Future[dns.resolver.Answer]"] = set()


class DomainError(ValueError):
    """What was given is no domain that DNS can be asked about; the message goes on after it: "is empty"."""


class DNSError(Exception):
    """DNS has not said anything usable, so nothing is known of the domain. Try later; never refuse mail for this.

    ``reason``: a few words such as ``timed out`` or ``SERVFAIL``, with nothing of the domain in them.
    """

    def __init__(self, domain: str, reason: str, kind: str = "MX") -> None:
        super().__init__(f"DNS does not tell the {kind} of {domain}: {reason}")
        self.reason = reason


class MissingExtraError(ImportError):
    """A package of the extra ``relay`` is missing; the message says what to install."""


class MX(NamedTuple):
    """One record. ``target`` is ASCII, as in a zone file but without the last dot; the root is ``.``."""

    preference: int
    target: str


class MXAnswer(NamedTuple):
    """What DNS said, usable for ``ttl`` seconds.

    ``domain``: what was asked for, in A-labels and lower case. ``records``: its MX set, the most preferred first, after
    any CNAME; without one mail goes to the domain's own address (RFC 5321 §5.1). ``exists`` is False for NXDOMAIN.
    """

    domain: str
    records: tuple[MX, ...]
    exists: bool
    ttl: int

    @property
    def is_null_mx(self) -> bool:
        """Tell whether this says "no mail", RFC 7505 §3: a single MX, of preference 0, whose target is the root."""
        return self.records == (MX(0, _ROOT),)

    @property
    def is_faulty_null_mx(self) -> bool:
        """Tell whether this tries to and fails: the root beside others, or with another preference.

        RFC 7505 §3 forbids both, and says of neither what it means; such a domain may well want its mail.
        """
        return not self.is_null_mx and any(record.target == _ROOT for record in self.records)


async def accepts_mail(
    domain: str,
    *,
    resolver: tuple[str, int] | None = None,
    timeout: float = TIMEOUT,  # noqa: ASYNC109 - the DNS library keeps it
) -> bool:
    """Return False when ``domain`` says by a null MX that it takes no mail, else True.

    True is no promise: a domain that does not exist, or has a broken MX set, has not said that it takes none
    (`look_up_mx` tells). Arguments and errors are those of `look_up_mx`.
    """
    return not (await look_up_mx(domain, resolver=resolver, timeout=timeout)).is_null_mx


async def look_up_mx(
    domain: str,
    *,
    resolver: tuple[str, int] | None = None,
    timeout: float = TIMEOUT,  # noqa: ASYNC109 - the DNS library keeps it
) -> MXAnswer:
    """Ask DNS, within ``timeout`` seconds, for the MX set of a domain, or of an address's domain.

    ``resolver``: the address and port of a recursive name server; without one those of /etc/resolv.conf, as it is now.
    Search lists are never used. A truncated answer is asked for again over TCP. Nothing is cached here.

    Raises `DomainError` for what is no domain (see `domain_of`), `DNSError` when DNS does not answer in time or not
    usably (SERVFAIL, REFUSED, garbage), `MissingExtraError` without the extra ``relay``.
    """
    need_extra()
    import dns.name
    import dns.resolver

    domain = domain_of(domain)
    try:
        answer = await _ask(domain, "MX", resolver, timeout)
    except dns.resolver.NXDOMAIN as error:
        response = error.kwargs["responses"][dns.name.from_text(domain + _ROOT)]
        return MXAnswer(domain, (), exists=False, ttl=_ttl(response))
    return MXAnswer(domain, _records(answer.rrset), exists=True, ttl=_ttl(answer.response))


async def look_up_addresses(
    name: str,
    *,
    resolver: tuple[str, int] | None = None,
    timeout: float = TIMEOUT,  # noqa: ASYNC109 - the DNS library keeps it
) -> tuple[list[str], str]:
    """Ask DNS for the addresses of an ASCII name: what a mail relay would connect to, whatever /etc/hosts says.

    Both questions, AAAA and A, are asked at once and have ``timeout`` seconds each. Returns the addresses, IPv6 first,
    none for a name that has none; and ``""``, or the reason as in `DNSError` why there may be more: what is known of
    one family is of use when DNS fails for the other. Raises `MissingExtraError`.
    """
    need_extra()
    import asyncio  # `nullsmtpd check HOST` comes by here too, and does without

    found = await asyncio.gather(*(_addresses(name, kind, resolver, timeout) for kind in ("AAAA", "A")))
    reasons = [reason for _, reason in found if reason]
    return [address for addresses, _ in found for address in addresses], reasons[0] if reasons else ""


def domain_of(text: str) -> str:
    """Return the domain that ``text`` is, or that follows its last ``@``: A-labels, lower case, no dot at the end.

    What is not ASCII is mapped as UTS 46 has it and encoded as IDNA 2008 (RFC 5891) wants. Raises `DomainError` for
    what no DNS name can be, and for addresses in place of names (RFC 5321 §4.1.3); `MissingExtraError` without idna.
    """
    if text.endswith("]"):
        raise DomainError("is an address literal, which has no MX")  # and may have an "@" in it
    domain = text.rpartition("@")[2]
    if len(domain) > MAX_DOMAIN + len(_ROOT):  # before idna: what it maps and encodes takes its time
        raise DomainError(f"is too long; a domain name has at most {MAX_DOMAIN} characters")
    if not domain.isascii():
        domain = _a_labels(domain)
    domain = domain.removesuffix(_ROOT).lower()
    if not domain:
        raise DomainError("has no domain")
    if len(domain) > MAX_DOMAIN or not _DOMAIN.fullmatch(domain):
        raise DomainError("is not a domain name; give labels of up to 63 letters, digits and hyphens, parted by dots")
    if domain.rpartition(".")[2].isdigit():  # RFC 3696 §2: no top-level domain is a number, so this is an IPv4 address
        raise DomainError("is an address and not a name, and has no MX")
    return domain


def resolver_address(text: str) -> tuple[str, int]:
    """Parse ``ADDR``, ``ADDR:PORT`` or ``[v6]:PORT``, the port being 53 if left out. Raises `ValueError`."""
    if text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"
    if text.endswith("]") or ":" not in text:
        text = f"{text}:{_DNS_PORT}"
    host, port = parse_address(text)
    try:
        ipaddress.ip_address(host := host or "")
    except ValueError:
        raise ValueError(
            "is not the address of a name server; give an IP address, and a port if it is not 53"
        ) from None
    if not port:
        raise ValueError("has the port 0; give a number from 1 to 65535")
    return host, port


def need_extra() -> None:
    """Raise `MissingExtraError` unless the packages of the extra ``relay`` are here."""
    try:
        import dns.asyncresolver  # noqa: F401 - they need only be there
        import idna  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"the package {error.name} is missing: pip install 'nullsmtpd-521[relay]'", name=error.name
        ) from None


def load_extra() -> None:
    """Load what a question may need later, as another user might not be able to read it.

    Raises `MissingExtraError`.
    """
    need_extra()
    import dns.asyncbackend
    import dns.rdata
    import dns.rdataclass
    import dns.rdatatype

    dns.asyncbackend.get_backend("asyncio")
    for kind in ("MX", "SOA", "CNAME", "DNAME", "OPT", "NS", "A", "AAAA", "RRSIG"):
        dns.rdata.get_rdata_class(dns.rdataclass.IN, dns.rdatatype.from_text(kind))  # type: ignore[no-untyped-call]
    domain_of("\N{LATIN SMALL LETTER U WITH DIAERESIS}.example")


def _a_labels(domain: str) -> str:
    need_extra()
    import idna

    try:
        return idna.encode(domain, uts46=True).decode("ascii")
    except UnicodeError:
        raise DomainError("is not an internationalized domain name that IDNA 2008 allows") from None


async def _addresses(name: str, kind: str, resolver: tuple[str, int] | None, lifetime: float) -> tuple[list[str], str]:
    import dns.resolver

    try:
        answer = await _ask(name, kind, resolver, lifetime)
    except dns.resolver.NXDOMAIN:
        return [], ""
    except DNSError as error:
        return [], error.reason
    return [record.address for record in answer.rrset or ()], ""


async def _ask(domain: str, kind: str, resolver: tuple[str, int] | None, lifetime: float) -> "dns.resolver.Answer":
    """Return what DNS says within ``lifetime`` seconds. Raises `DNSError`, and dnspython's `NXDOMAIN`."""
    import dns.exception
    import dns.flags
    import dns.resolver

    try:
        answer = await _to_its_end(
            _stub(resolver).resolve(domain + _ROOT, kind, raise_on_no_answer=False, lifetime=lifetime)
        )
    except dns.resolver.NXDOMAIN:
        raise
    except (dns.exception.DNSException, OSError, ValueError) as error:
        raise DNSError(domain, _reason(error), kind) from error
    if answer.response.flags & dns.flags.TC:  # over TCP too: a part of an MX set may look like a null MX
        raise DNSError(domain, "truncated", kind)
    return answer


async def _to_its_end(question: "Coroutine[Any, Any, dns.resolver.Answer]") -> "dns.resolver.Answer":
    """Await the answer; when the caller is cancelled, the question still takes its time, of which it has a bound.

    Cancelled itself while its UDP socket is made, it would leave that open for ever: uvloop's loop does.
    """
    import asyncio

    task = asyncio.ensure_future(question)
    _under_way.add(task)  # the loop itself keeps only a weak reference
    task.add_done_callback(_is_over)
    return await asyncio.shield(task)


def _is_over(task: "asyncio.Future[dns.resolver.Answer]") -> None:
    _under_way.discard(task)
    if not task.cancelled():
        task.exception()  # or the loop would complain where nobody waited for it any more


def _stub(resolver: tuple[str, int] | None) -> "dns.asyncresolver.Resolver":
    """Return a stub resolver; a new one each time costs 20 µs, and never goes by an /etc/resolv.conf of yesterday."""
    import dns.asyncresolver

    if resolver is None:
        return dns.asyncresolver.Resolver()
    stub = dns.asyncresolver.Resolver(configure=False)
    address, stub.port = resolver
    stub.nameservers = [address]
    return stub


def _records(rrset: "dns.rrset.RRset | None") -> tuple[MX, ...]:
    return tuple(sorted(MX(one.preference, one.exchange.to_text(omit_final_dot=True)) for one in rrset or ()))


def _ttl(response: "dns.message.QueryMessage") -> int:
    """Return the least TTL on the way to the answer; where there is none, what RFC 2308 §5 takes from the SOA.

    Without a SOA that is 0: "should not be cached".
    """
    import dns.rdatatype

    found = response.resolve_chaining()
    has_soa = any(rrset.rdtype == dns.rdatatype.SOA for rrset in response.authority)
    return found.minimum_ttl if found.answer is not None or has_soa else 0


def _reason(error: Exception) -> str:
    """Say in a few words why DNS is no help, without what it was asked."""
    import dns.exception
    import dns.resolver

    if isinstance(error, dns.exception.Timeout):
        return "timed out"
    if isinstance(error, dns.resolver.NoNameservers) and (errors := error.kwargs["errors"]):
        last = errors[-1][3]  # an exception, or the text of a response code
        return last if isinstance(last, str) else _reason(last)
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, dns.resolver.NoResolverConfiguration):
        return "no name server in /etc/resolv.conf"
    return f"no usable answer ({type(error).__name__})"
