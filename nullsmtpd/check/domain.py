"""A domain as a sender of mail, and as its owner, sees it: what it publishes, and how its servers behave."""

import asyncio
import ipaddress
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

from nullsmtpd.check.dialogue import ANY
from nullsmtpd.check.probe import TIMEOUT, Probe, probe, run_all
from nullsmtpd.check.published import Finding, Publications, Status, is_address, judge_mx
from nullsmtpd.check.verdicts import Behaviour, Verdict, behaviour_of, verdict_on
from nullsmtpd.nullmx import DNSError, MXAnswer, Resolver, domain_of

__all__ = ["MAX_ADDRESSES", "MAX_HOSTS", "DomainReport", "HostReport", "check_domain", "not_public"]

#: Bounds for one domain: anybody can publish an MX set of thousands of hosts and addresses. The largest mail providers
#: have a few dozen addresses. 100 silent ones take 20 s: `run_all`'s number at a time, for `TIMEOUT` seconds each.
MAX_HOSTS = 32
MAX_ADDRESSES = 100
#: Two queries for each host, and 50 at most for the MX set and what `Publications` looks up.
MAX_QUERIES = 120

_ROOT = "."

_SHARED = ipaddress.IPv4Network("100.64.0.0/10")  # RFC 6598
#: Networks whose last 32 bits are an IPv4 address: RFC 4291 §2.5.5.1 (deprecated), RFC 6052 §2.1 (what DNS64 makes).
_COMPATIBLE, _NAT64 = ipaddress.IPv6Network("::/96"), ipaddress.IPv6Network("64:ff9b::/96")
#: RFC 4291 §2.4: other IPv6 addresses are reserved or local, as those of a local NAT64 are (RFC 8215).
_UNICAST = ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv6Network("2000::/3")
#: 6to4, whose relays are gone (RFC 7526), and documentation (RFC 9637); not every Python knows them.
_NOT_ROUTED = ipaddress.IPv6Network("2002::/16"), ipaddress.IPv6Network("3fff::/20")


class HostReport(NamedTuple):
    """One name with its addresses in DNS. ``preferences``: those of its MX records; none for the domain's own name.

    ``error``: why DNS does not tell all addresses, or ``""``. ``canonical``: the name that has them, another one if
    ``name`` is an alias (CNAME). ``addresses``: those to connect to; ``not_public``: those that no sender on the
    Internet can reach, each with its kind. ``probes``: in mode `ANY`, one for each of ``addresses`` up to the bounds.
    """

    name: str
    preferences: tuple[int, ...]
    error: str
    canonical: str
    addresses: list[str]
    not_public: list[tuple[str, str]]
    probes: list[Probe]

    def as_json(self) -> dict[str, object]:
        """Return an object for JSON."""
        return {
            "name": self.name,
            "preferences": list(self.preferences),
            "error": self.error or None,
            "canonical": self.canonical,
            "not_public": dict(self.not_public),
            "left_out": len(self.addresses) - len(self.probes),
            "addresses": [seen.as_json() | {"answer": behaviour_of(seen).name.lower()} for seen in self.probes],
        }


class DomainReport(NamedTuple):
    """What was found out about a domain.

    ``mx``: its MX set, or `None` when DNS does not answer; ``error`` is the reason. ``sends``: whether it sends mail.
    ``findings``: what it publishes, the MX set first. ``hosts``: the domain's own name first, then those in the MX set.
    ``left_out``: how many names and addresses were not looked up or connected to, as there are more than `MAX_HOSTS` or
    `MAX_ADDRESSES`. ``verdict``: what a sender experiences.
    """

    domain: str
    mx: MXAnswer | None
    error: str
    sends: bool
    findings: list[Finding]
    hosts: list[HostReport]
    left_out: int
    verdict: Verdict

    @property
    def is_good(self) -> bool:
        """Whether mail for the domain is refused, its author told at once, and nothing published contradicts that."""
        return self.passes(strict=False)

    def passes(self, *, strict: bool) -> bool:
        """Return `is_good`; if ``strict``, only if there is no advice either."""
        return self.verdict.is_good and not self.problems(strict=strict)

    def problems(self, *, strict: bool = False) -> list[Finding]:
        """Return the findings that are wrong or unknown, and, if ``strict``, those that are advice."""
        tolerated = {Status.OK} if strict else {Status.OK, Status.ADVICE}
        return [finding for finding in self.findings if finding.status not in tolerated]

    def lines(self, *, strict: bool = False) -> list[str]:
        """Return lines in printable ASCII: what is published, each address, and the verdict last."""
        lines = [str(finding) for finding in self.findings]
        for host in self.hosts:
            lines += map(str, host.probes)
            if host.error:
                lines.append(f"{host.name}: DNS does not answer for all of its addresses: {host.error}")
        if self.left_out:
            lines.append(f"{self.domain}: {self.left_out} more names and addresses are not probed: too many")
        words = self.verdict.words
        if self.verdict.is_good and (problems := self.problems(strict=strict)):
            words += "; but see above: " + ", ".join(f"{finding.name} {finding.subject}" for finding in problems)
        return [*lines, f"{self.domain} {'good' if self.passes(strict=strict) else 'bad'}: {words}"]

    def as_json(self, *, strict: bool = False) -> dict[str, object]:
        """Return an object for JSON."""
        mx = self.mx
        return {
            "name": self.domain,
            "good": self.passes(strict=strict),
            "verdict": self.verdict.name,
            "words": self.verdict.words,
            "sends": self.sends,
            "error": self.error or None,
            "exists": mx.exists if mx else None,
            "mx": [record._asdict() for record in mx.records] if mx else None,
            "ttl": mx.ttl if mx else None,
            "null_mx": mx.is_null_mx if mx else None,
            "findings": [finding._asdict() for finding in self.findings],
            "left_out": self.left_out,
            "hosts": [host.as_json() for host in self.hosts],
        }


async def check_domain(  # noqa: PLR0913 - the domain, and how to look at it
    domain: str,
    *,
    port: int = 25,
    resolver: tuple[str, int] | None = None,
    timeout: float = TIMEOUT,  # noqa: ASYNC109 - for each query and each address
    sends: bool = False,
    allow_private: bool = False,
) -> DomainReport:
    """Look up what ``domain`` publishes about mail, connect to all addresses that mail may go to, and judge both.

    A server that greets with 220 is sent EHLO and MAIL, to see whether it accepts mail, and no recipient. Without an MX
    mail goes to the domain's own addresses (RFC 5321 §5.1); they are probed in any case. ``sends``: the domain sends
    mail, even if no SPF record says so. ``allow_private``: treat addresses that are not on the public Internet as if
    they were. ``timeout``: seconds for each query and each address. ``resolver`` and exceptions are those of
    `nullsmtpd.look_up_mx`; a `DNSError` becomes part of the report.
    """
    domain = domain_of(domain)
    session = Resolver(resolver, timeout, max_queries=MAX_QUERIES)
    try:
        mx, error = await session.look_up_mx(domain), ""
    except DNSError as failure:
        mx, error = None, failure.reason
    names = _names(domain, mx)
    hosts = await asyncio.gather(*(_look_up(session, *name, allow_private=allow_private) for name in names[:MAX_HOSTS]))
    prober = partial(probe, port=port, mode=ANY, timeout=timeout)
    targets = [partial(prober, address, host=host.name) for host in hosts for address in host.addresses]
    published = Publications(session, domain, sends)
    # What a sender would try: the hosts in the MX set, or without one the domain's own addresses.
    tried = [host for host in hosts if host.preferences or not mx.records] if mx else []
    findings, probes = await asyncio.gather(
        _findings(published, mx, error, hosts[0], tried), asyncio.to_thread(run_all, targets[:MAX_ADDRESSES])
    )
    for host in hosts:
        host.probes.extend(seen for seen in probes if seen.host == host.name)
    groups: defaultdict[int, set[Behaviour]] = defaultdict(set)  # by the preference of the hosts
    for host in tried:
        groups[min(host.preferences, default=0)] |= _behaviours(host)
    left_out = len(names) - len(hosts) + len(targets) - len(probes)
    is_known = mx is not None and not any(host.error for host in (hosts[:1] if mx.is_null_mx else tried))
    tried_groups = [groups[preference] for preference in sorted(groups)]
    verdict = verdict_on(mx, _behaviours(hosts[0]), tried_groups, is_known=is_known, left_out=left_out)
    return DomainReport(domain, mx, error, published.sends, findings, hosts, left_out, verdict)


def _names(domain: str, mx: MXAnswer | None) -> list[tuple[str, tuple[int, ...]]]:
    """Return the domain's own name, and those in its MX set with their preferences, each once."""
    preferences: dict[str, tuple[int, ...]] = {domain: ()}
    for preference, target in mx.records if mx else ():
        if target != _ROOT and not is_address(target):
            name = target.lower()
            preferences[name] = (*preferences.get(name, ()), preference)
    return list(preferences.items())


async def _look_up(session: Resolver, name: str, preferences: tuple[int, ...], *, allow_private: bool) -> HostReport:
    host = HostReport(name, preferences, "", name, [], [], [])
    queries = (session.query(name, rdtype) for rdtype in ("AAAA", "A"))
    for answer in await asyncio.gather(*queries, return_exceptions=True):
        if isinstance(answer, DNSError):
            host = host._replace(error=answer.reason)
            continue
        if isinstance(answer, BaseException):
            raise answer
        host = host._replace(canonical=answer.name if answer.is_alias else host.canonical)
        for address in (record.address for record in cast("Any", answer.records)):
            if (kind := not_public(address)) and not allow_private:
                host.not_public.append((address, kind))
            else:
                host.addresses.append(address)
    return host


def not_public(address: str) -> str:
    """Return why no sender on the Internet can reach an address, such as "loopback", or ``""``.

    That includes addresses for documentation and other special purposes (RFC 6890, as Python's ipaddress has them), and
    IPv6 addresses that contain such an IPv4 address.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:
            return "IPv4-mapped"
        if ip in _COMPATIBLE and int(ip) > 1:  # not :: and ::1
            return "IPv4-compatible"
        if ip in _NAT64:
            return not_public(str(ipaddress.IPv4Address(int(ip) % 2**32)))
    for kind in ("unspecified", "loopback", "link_local", "multicast", "site_local"):
        if getattr(ip, f"is_{kind}", False):
            return kind.replace("_", "-")
    if ip in _SHARED:
        return "shared (carrier-grade NAT)"
    is_routed = any(ip in network for network in _UNICAST) and not any(ip in network for network in _NOT_ROUTED)
    return "" if ip.is_global and is_routed else "private or reserved"


async def _findings(
    published: Publications, mx: MXAnswer | None, error: str, own: HostReport, tried: Sequence[HostReport]
) -> list[Finding]:
    """Return all findings, the one on the MX set first."""
    if mx is None:
        return [Finding("MX", own.name, "?", Status.UNKNOWN, f"DNS does not answer: {error}")]
    if not mx.exists:
        return [Finding("MX", own.name, "none", Status.WRONG, "no such domain")]
    others = await published.findings(mx, own.canonical, [host.name for host in tried or [own]])
    faults = [fault for host in tried for fault in _host_faults(host)]
    return [judge_mx(mx, own.canonical, sends=published.sends), *faults, *others]


def _host_faults(host: HostReport) -> list[Finding]:
    """Return what is wrong with a host that mail goes to."""
    faults = [(address, f"no sender on the Internet can reach it: {kind}") for address, kind in host.not_public]
    if host.preferences and host.canonical != host.name:
        faults.append((f"alias (CNAME) of {host.canonical}", "an MX must be no alias (RFC 2181 section 10.3)"))
    if host.preferences and not (host.addresses or host.not_public or host.error):
        faults.append(("no address", "an MX must have one (RFC 5321 section 5.1)"))
    subject = "MX host" if host.preferences else "address"
    return [Finding(subject, host.name, found, Status.WRONG, words) for found, words in faults]


def _behaviours(host: HostReport) -> set[Behaviour]:
    return {behaviour_of(seen) for seen in host.probes} | ({Behaviour.NOT_PUBLIC} if host.not_public else set())
