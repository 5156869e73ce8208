"""A domain's mail according to DNS: its MX set, and whether that is a null MX (RFC 7505).

    if not await accepts_mail("example.org"):
        ...  # 556 5.1.10 Domain does not accept mail

The distribution's extra ``relay`` is required: dnspython for DNS messages, idna for internationalized names.
"""

import contextlib
import errno
import ipaddress
import os
import re
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from nullsmtpd.runtime.event_loop import import_without_openssl
from nullsmtpd.runtime.resolv_conf import MAX_TIMEOUT, ResolvConf, read_resolv_conf
from nullsmtpd.runtime.sockets import parse_target

if TYPE_CHECKING:
    import asyncio

    import dns.message
    import dns.rdata

__all__ = ["MX", "TIMEOUT", "Answer", "DNSError", "DomainError", "MXAnswer", "MissingExtraError", "Resolver"]
__all__ += ["accepts_mail", "domain_of", "load_extra", "look_up_mx", "resolver_address"]

#: Seconds for one query, all attempts included. SMTP clients wait for a reply to RCPT for 5 minutes (RFC 5321
#: §4.5.3.2.3), mail servers for their lookup tables for at least 10 seconds (deploy/relay).
TIMEOUT = 5.0

#: RFC 1035 §2.3.4: 255 octets on the wire are this many characters without the final dot.
MAX_DOMAIN = 253

#: Seconds in which a name server that did not respond is asked after all others; without this, a dead first server
#: would delay every query. RFC 2308 §7.2 allows up to 5 minutes.
DEAD_SERVER_SECONDS = 60.0

_ROOT = "."
_DNS_PORT = 53

# RFC 1035 §2.3.4: 63 octets a label. RFC 5321 §2.3.5 allows letters, digits and hyphens; the underscore, which some
# domains that accept mail contain nevertheless, is for DNS to judge.
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_DOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")


class DomainError(ValueError):
    """A text is not a domain that DNS can be asked about; the message continues a sentence: "is empty"."""


class DNSError(Exception):
    """DNS gave no usable answer, so nothing is known about the domain. Try later; never refuse mail because of this.

    ``reason``: a few words such as ``timed out`` or ``SERVFAIL``, without the domain.
    """

    def __init__(self, domain: str, reason: str, rdtype: str = "MX") -> None:
        super().__init__(f"DNS lookup of {domain} {rdtype} failed: {reason}")
        self.reason = reason


class MissingExtraError(ImportError):
    """A package of the extra ``relay`` is missing; the message names the command that installs it."""


class MX(NamedTuple):
    """One record. ``target`` is ASCII, as in a zone file but without the final dot; the root is ``.``."""

    preference: int
    target: str


class MXAnswer(NamedTuple):
    """An answer of DNS, valid for ``ttl`` seconds.

    ``domain``: the name that was looked up, in A-labels and lower case. ``records``: its MX set in order of preference,
    after any CNAME; without MX records mail goes to the domain's own address (RFC 5321 §5.1). ``exists`` is False for
    NXDOMAIN.
    """

    domain: str
    records: tuple[MX, ...]
    exists: bool
    ttl: int

    @property
    def is_null_mx(self) -> bool:
        """Whether the domain accepts no mail, RFC 7505 §3: a single MX, preference 0, whose target is the root."""
        return self.records == (MX(0, _ROOT),)

    @property
    def is_invalid_null_mx(self) -> bool:
        """Whether the root is an MX target without making a null MX: beside other records, or with another preference.

        RFC 7505 §3 forbids both and does not define what they mean; such a domain may well want its mail.
        """
        return not self.is_null_mx and any(record.target == _ROOT for record in self.records)


class Answer(NamedTuple):
    """The records of one name and type.

    ``name``: the canonical name, after any CNAME or DNAME; lower case, without the final dot. ``exists``: False for
    NXDOMAIN. ``ttl``: seconds for which the answer may be cached, also when it is that there are no records (RFC 2308
    §5). ``is_alias``: a CNAME was followed.
    """

    name: str
    exists: bool
    records: tuple["dns.rdata.Rdata", ...]
    ttl: int
    is_alias: bool


async def accepts_mail(domain: str, *, resolver: tuple[str, int] | None = None, timeout: float = TIMEOUT) -> bool:
    """Return False when ``domain`` declares by a null MX that it accepts no mail, else True.

    True is no promise: a domain that does not exist, or has an invalid MX set, has not declared that it accepts none
    (`look_up_mx` shows it). Arguments and exceptions are those of `look_up_mx`.
    """
    return not (await look_up_mx(domain, resolver=resolver, timeout=timeout)).is_null_mx


async def look_up_mx(domain: str, *, resolver: tuple[str, int] | None = None, timeout: float = TIMEOUT) -> MXAnswer:
    """Look up the MX set of a domain, or of the domain of an address, within ``timeout`` seconds.

    ``resolver``: the address and port of a recursive name server; by default those of /etc/resolv.conf. For several
    lookups use one `Resolver`. Nothing is cached here.

    Raises `DomainError` if ``domain`` is not one (see `domain_of`), `DNSError` when DNS gives no usable answer in time,
    `MissingExtraError` without the extra ``relay``.
    """
    return await Resolver(resolver, timeout).look_up_mx(domain)


class Resolver:
    """A stub resolver for many queries, which may be concurrent; it caches no answers.

    ``server``: the address and port of a recursive name server; by default those of /etc/resolv.conf, which is read
    for every query the way glibc reads it. Search lists are never used. ``timeout``: seconds for one query, divided
    among the servers and attempts; a server that did not respond is asked last for a while. ``max_queries``: any
    further query raises `DNSError`; by default there is no limit.

    Raises `MissingExtraError` without the extra ``relay``.
    """

    def __init__(
        self, server: tuple[str, int] | None = None, timeout: float = TIMEOUT, *, max_queries: int | None = None
    ) -> None:
        _need("dns.message")
        self._conf = ResolvConf((server[0],), timeout=MAX_TIMEOUT) if server else None
        self._port = server[1] if server else _DNS_PORT
        self._timeout = timeout
        self._max_queries = max_queries
        self._queries = 0
        self._dead_until: dict[str, float] = {}  # by server, in seconds of time.monotonic()

    async def look_up_mx(self, domain: str) -> MXAnswer:
        """Return the MX set of a domain, or of the domain of an address. Raises `DomainError` and `DNSError`."""
        domain = domain_of(domain)
        answer = await self.query(domain, "MX")
        records: tuple[Any, ...] = answer.records
        mx = sorted(MX(record.preference, record.exchange.to_text(omit_final_dot=True)) for record in records)
        return MXAnswer(domain, tuple(mx), answer.exists, answer.ttl)

    async def query(self, name: str, rdtype: str) -> Answer:
        """Return the records of ``name``, an absolute name in ASCII, of the type ``rdtype`` such as ``"TXT"``.

        A truncated response is asked for again over TCP. Raises `DNSError`.
        """
        import dns.exception
        import dns.message

        if self._queries == self._max_queries:
            raise DNSError(name, f"more than {self._max_queries} queries", rdtype)
        self._queries += 1
        try:
            return await self._ask(dns.message.make_query(name, rdtype))
        except dns.exception.DNSException as error:
            reason = f"not a name ({type(error).__name__})"
        except TimeoutError:
            reason = "timed out"
        except OSError as error:
            reason = error.strerror or str(error)
        raise DNSError(name, reason, rdtype)

    async def _ask(self, query: "dns.message.Message") -> Answer:
        """Ask one server after the other, as often as resolv.conf says, those that did not respond lately last.

        Each attempt has an equal share of the time that is left, so that dead servers leave some for the last one.
        Raises the `OSError` of the last attempt.
        """
        import asyncio

        conf = self._conf or read_resolv_conf()
        now = time.monotonic()
        deadline = now + self._timeout
        servers = deque(conf.servers)
        if conf.rotate:
            servers.rotate(self._queries)
        alive_first = sorted(servers, key=lambda server: self._dead_until.get(server, now) > now)
        # glibc doubles its timeout with each attempt.
        attempts = [(server, conf.timeout << number) for number in range(conf.attempts) for server in alive_first]
        last_error = OSError()
        while attempts:
            share = (deadline - time.monotonic()) / len(attempts)
            server, timeout = attempts.pop(0)
            try:
                async with asyncio.timeout(min(share, timeout)):
                    answer = _answer(await _exchange(query, server, self._port, over_tcp=conf.use_vc))
            except _UnusableError as error:
                last_error = error
                attempts = [attempt for attempt in attempts if attempt[0] != server]
            except OSError as error:  # no response; includes TimeoutError
                last_error = error
                self._dead_until[server] = time.monotonic() + DEAD_SERVER_SECONDS
            else:
                self._dead_until.pop(server, None)
                return answer
        raise last_error


class _UnusableError(OSError):
    """A name server responded without an answer, and would do so again; the message is the reason."""


def domain_of(text: str) -> str:
    """Return the domain that ``text`` is, or that follows its last ``@``: A-labels, lower case, no dot at the end.

    Labels with other characters than ASCII are mapped and encoded as UTS #46 specifies (non-transitional), which mail
    servers and browsers follow: it allows what IDNA 2008 does, and symbols. Raises `DomainError` for a text that cannot
    be a DNS name, and for an IP address (RFC 5321 §4.1.3); `MissingExtraError` without idna.
    """
    if text.endswith("]"):
        raise DomainError("is an address literal, which has no MX")  # and may have an "@" in it
    domain = text.rpartition("@")[2]
    if len(domain) > MAX_DOMAIN + len(_ROOT):  # before idna, which is slow
        raise DomainError(f"is too long; a domain name has at most {MAX_DOMAIN} characters")
    if not domain.isascii():
        domain = _a_labels(domain)
    domain = domain.removesuffix(_ROOT).lower()
    if not domain:
        raise DomainError("has no domain")
    if len(domain) > MAX_DOMAIN or not _DOMAIN.fullmatch(domain):
        raise DomainError(
            "is not a domain name; give labels of up to 63 letters, digits and hyphens, separated by dots"
        )
    if domain.rpartition(".")[2].isdigit():  # RFC 3696 §2: no top-level domain is a number, so this is an IPv4 address
        raise DomainError("is an IP address, which has no MX")
    return domain


def resolver_address(text: str) -> tuple[str, int]:
    """Parse ``ADDR``, ``ADDR:PORT`` or ``[v6]:PORT``, the port being 53 if left out. Raises `ValueError`."""
    host, port = parse_target(text, _DNS_PORT)
    try:
        ipaddress.ip_address(host := host or "")
    except ValueError:
        raise ValueError(
            "is not the address of a name server; give an IP address, and a port if it is not 53"
        ) from None
    if not port:
        raise ValueError("has the port 0; give a number from 1 to 65535")
    return host, port


def load_extra() -> None:
    """Import all that a query may need, as another user may be unable to read it, and without OpenSSL.

    For commands, see `nullsmtpd.runtime.event_loop`. Raises `MissingExtraError`.
    """
    _need("dns.message", import_without_openssl)
    import dns.inet
    import dns.rdata
    import dns.rdataclass
    import dns.rdatatype

    for kind in ("MX", "SOA", "CNAME", "DNAME", "OPT", "NS", "A", "AAAA", "RRSIG"):
        dns.rdata.get_rdata_class(dns.rdataclass.IN, dns.rdatatype.from_text(kind))  # type: ignore[no-untyped-call]
    domain_of("\u00fc.example")


def _need(module_name: str, import_module: Callable[[str], object] = __import__) -> None:
    """Import a module of the extra. Raises `MissingExtraError`."""
    try:
        import_module(module_name)
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in {"dns", "idna"}:
            raise  # a damaged installation
        message = f"the package {error.name} is missing: pip install 'nullsmtpd-521[relay]'"
        raise MissingExtraError(message, name=error.name) from None


def _a_labels(domain: str) -> str:
    _need("idna")
    import idna

    try:
        labels = idna.uts46_remap(domain, std3_rules=False).split(".")
    except UnicodeError:
        raise DomainError("contains a character that is not allowed in domain names (UTS #46)") from None
    return ".".join(label if label.isascii() else "xn--" + label.encode("punycode").decode("ascii") for label in labels)


async def _exchange(query: "dns.message.Message", server: str, port: int, *, over_tcp: bool) -> "dns.message.Message":
    """Return the first response to the query, over TCP if it is truncated. Raises `OSError` when there is none."""
    import asyncio

    import dns.exception
    import dns.flags
    import dns.message

    loop = asyncio.get_running_loop()
    kind = socket.SOCK_STREAM if over_tcp else socket.SOCK_DGRAM
    # As octets: a str would be encoded as a host name, which the interface of a link-local address need not be.
    ((family, _, _, _, address),) = socket.getaddrinfo(
        os.fsencode(server), port, type=kind, flags=socket.AI_NUMERICHOST
    )
    with socket.socket(family, kind) as connection:
        connection.setblocking(False)
        # Connected, a UDP socket gets no datagrams from other addresses, and an error when the port is closed.
        await _connect(loop, connection, address)
        await loop.sock_sendall(connection, query.to_wire(prepend_length=over_tcp))
        while True:
            if over_tcp:
                length = await _receive(loop, connection, 2)  # RFC 1035 §4.2.2
                message = await _receive(loop, connection, int.from_bytes(length))
            else:
                message = await loop.sock_recv(connection, 1 << 16)
            with contextlib.suppress(dns.exception.DNSException, ValueError):  # garbage, which may be forged
                try:
                    response = dns.message.from_wire(message, raise_on_truncation=True)
                except dns.message.Truncated as error:  # what comes after its question may be cut off anywhere
                    response = error.message()  # type: ignore[no-untyped-call]
                if query.is_response(response):
                    break
            await asyncio.sleep(0)  # asyncio's sock_recv() waits only without input: a flood would outlast all timeouts
    if response.flags & dns.flags.TC and not over_tcp:
        response = await _exchange(query, server, port, over_tcp=True)
    return response


async def _connect(loop: "asyncio.AbstractEventLoop", connection: socket.socket, address: tuple[Any, ...]) -> None:
    """Connect to a numeric address. Raises `OSError`; an error of TCP is raised when something is sent.

    uvloop's sock_connect() calls getaddrinfo(3) in threads, and libuv aborts the process when none can be started.
    """
    import asyncio

    try:
        connection.connect(address)
    except BlockingIOError:
        is_writable = asyncio.Event()
        loop.add_writer(connection, is_writable.set)
        try:
            await is_writable.wait()
        finally:
            loop.remove_writer(connection)


async def _receive(loop: "asyncio.AbstractEventLoop", connection: socket.socket, count: int) -> bytes:
    """Return this many octets. Raises `OSError` when the connection ends before."""
    octets = b""
    while len(octets) < count:
        received = await loop.sock_recv(connection, count - len(octets))
        if not received:
            raise ConnectionResetError(errno.ECONNRESET, "connection closed")
        octets += received
    return octets


def _answer(response: Any) -> Answer:  # noqa: ANN401
    """Return what a response says. Raises `_UnusableError` if it does not answer the query."""
    import dns.exception
    import dns.flags
    import dns.rcode
    import dns.rdatatype

    rcode, flags = response.rcode(), response.flags
    if rcode not in {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}:
        raise _UnusableError(dns.rcode.to_text(rcode))
    if flags & dns.flags.TC:  # a part of an MX set could look like a null MX
        raise _UnusableError("truncated")
    try:
        chain = response.resolve_chaining()
    except dns.exception.DNSException as error:
        raise _UnusableError(f"no usable answer ({type(error).__name__})") from None
    kinds = {rrset.rdtype for rrset in response.authority}
    has_soa = dns.rdatatype.SOA in kinds
    if chain.answer is None and rcode == dns.rcode.NOERROR and not has_soa:
        # RFC 2308 §2.2: without a SOA it may be a referral, or an alias whose target was not resolved.
        if chain.cnames:
            raise _UnusableError("alias without its target")
        if not flags & dns.flags.AA and (dns.rdatatype.NS in kinds or not flags & dns.flags.RA):
            raise _UnusableError("referral")
    return Answer(
        name=chain.canonical_name.to_text(omit_final_dot=True).lower(),
        exists=rcode != dns.rcode.NXDOMAIN,
        records=tuple(chain.answer or ()),
        ttl=chain.minimum_ttl if chain.answer is not None or has_soa else 0,  # RFC 2308 §5: "SHOULD NOT be cached"
        is_alias=bool(chain.cnames),
    )
