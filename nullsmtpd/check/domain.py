"""A domain as a sender of mail, and as its owner, sees it: what it publishes, and how its servers behave."""

import asyncio
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from nullsmtpd.check.dialogue import ANY
from nullsmtpd.check.probe import TIMEOUT, Probe, probe, run_all
from nullsmtpd.check.published import ADVICE, OK, UNKNOWN, WRONG, Finding, Publications
from nullsmtpd.check.verdicts import VERDICTS, Verdict, behaviour_of, verdict_on
from nullsmtpd.nullmx import DNSError, MXAnswer, Resolver, domain_of

__all__ = ["MAX_ADDRESSES", "MAX_HOSTS", "DomainReport", "HostReport", "check_domain", "not_public"]

#: Bounds for one domain: anybody can publish an MX set of thousands of hosts and addresses. The largest mail providers
#: have a few dozen addresses. 100 silent ones take 20 s: `run_all`'s number at a time, for `TIMEOUT` seconds each.
MAX_HOSTS = 32
MAX_ADDRESSES = 100
#: Three queries for each host, and 40 at most for the MX set and what else `Publications` looks up.
MAX_QUERIES = 136

#: RFC 6052 §2.1: networks of IPv6 addresses that DNS64 makes; the last 32 bits are an IPv4 address.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: Beyond 2000::/3 all is reserved or local (RFC 4291 §2.4), also the addresses of a local NAT64 (RFC 8215). 6to4, whose
#: relays are gone (RFC 7526), and documentation (RFC 9637) are in it, and not every Python knows them.
_NOT_ROUTED = tuple(map(ipaddress.IPv6Network, ("::/3", "4000::/2", "8000::/1", "2002::/16", "3fff::/20")))


@dataclass
class HostReport:
    """One name with its addresses in DNS. ``preferences``: those of its MX records; none for the domain's own name.

    ``error``: why DNS does not tell all addresses, or ``""``. ``canonical``: the name that has them, another one if
    ``name`` is an alias (CNAME). ``addresses``: those to connect to; ``not_public``: those that no sender on the
    Internet can reach, each with its kind. ``probes``: in mode `ANY`, one for each of ``addresses`` up to the bounds.
    """

    name: str
    canonical: str
    preferences: list[int] = field(default_factory=list)
    error: str = ""
    addresses: list[str] = field(default_factory=list)
    not_public: dict[str, str] = field(default_factory=dict)
    probes: list[Probe] = field(default_factory=list)

    @property
    def behaviours(self) -> set[Verdict]:
        """How the servers at its addresses treat mail."""
        not_public = {VERDICTS["not-public"]} if self.not_public else set()
        return {behaviour_of(seen) for seen in self.probes} | not_public

    def faults(self) -> list[Finding]:
        """Return what is wrong with a host that mail goes to."""
        faults = [(one, f"no sender on the Internet can reach it: {kind}") for one, kind in self.not_public.items()]
        if self.preferences and self.canonical != self.name:
            faults.append((f"alias (CNAME) of {self.canonical}", "an MX must be no alias (RFC 2181 section 10.3)"))
        if self.preferences and not (self.addresses or self.not_public or self.error):
            faults.append(("no address", "an MX must have one (RFC 5321 section 5.1)"))
        subject = "MX host" if self.preferences else "address"
        return [Finding(subject, self.name, found, WRONG, words) for found, words in faults]

    def as_json(self) -> dict[str, object]:
        """Return an object for JSON."""
        return {
            "name": self.name,
            "preferences": self.preferences,
            "error": self.error or None,
            "canonical": self.canonical,
            "not_public": self.not_public,
            "left_out": len(self.addresses) - len(self.probes),
            "addresses": [one.as_json() | {"answer": behaviour_of(one).name.replace("-", "_")} for one in self.probes],
        }


class DomainReport(NamedTuple):
    """What was found out about a domain.

    ``mx``: its MX set, or `None` when DNS does not answer; ``error`` is the reason. ``sends``: whether it sends mail.
    ``verdict``: what a sender experiences. ``findings``: what it publishes, the MX set first; ``problems``: those that
    make the domain bad. ``hosts``: the domain's own name first, then those in the MX set. ``left_out``: how many names
    and addresses were not looked up or connected to, as there are more than `MAX_HOSTS` or `MAX_ADDRESSES`.
    """

    domain: str
    mx: MXAnswer | None
    error: str
    sends: bool
    verdict: Verdict
    findings: Sequence[Finding]
    problems: Sequence[Finding] = ()
    hosts: Sequence[HostReport] = ()
    left_out: int = 0

    @property
    def is_good(self) -> bool:
        """Whether mail for the domain is refused, its author told at once, and nothing published contradicts that."""
        return self.verdict.is_good and not self.problems

    def __str__(self) -> str:
        """Return lines in printable ASCII: what is published, each address, and the verdict last."""
        lines: list[object] = [*self.findings]
        for host in self.hosts:
            lines += host.probes
            if host.error:
                lines.append(f"{host.name}: DNS does not answer for all of its addresses: {host.error}")
        if self.left_out:
            lines.append(f"{self.domain}: {self.left_out} more names and addresses are not probed: too many")
        words = self.verdict.words
        if self.verdict.is_good and self.problems:
            words += "; but see above: " + ", ".join(f"{finding.name} {finding.subject}" for finding in self.problems)
        return "\n".join(map(str, [*lines, f"{self.domain} {'good' if self.is_good else 'bad'}: {words}"]))

    def as_json(self) -> dict[str, object]:
        """Return an object for JSON."""
        mx = self.mx
        return {
            "name": self.domain,
            "good": self.is_good,
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
    timeout: float = TIMEOUT,
    sends: bool = False,
    strict: bool = False,
    allow_private: bool = False,
) -> DomainReport:
    """Look up what ``domain`` publishes about mail, connect to all addresses that mail may go to, and judge both.

    A server that greets with 220 is sent EHLO and MAIL, to see whether it accepts mail, and no recipient. Without an MX
    mail goes to the domain's own addresses (RFC 5321 §5.1); they are probed in any case. ``sends``: the domain sends
    mail, even if no SPF record says so. ``strict``: advice makes it bad, too. ``allow_private``: treat addresses that
    are not on the public Internet as if they were. ``timeout``: seconds for each query and each address. ``resolver``
    and exceptions are those of `nullsmtpd.look_up_mx`; a `DNSError` becomes part of the report.
    """
    domain = domain_of(domain)
    dns = Resolver(resolver, timeout, max_queries=MAX_QUERIES)
    try:
        mx = await dns.look_up_mx(domain)
    except DNSError as error:
        finding = Finding("MX", domain, "?", UNKNOWN, f"DNS does not answer: {error.reason}")
        return DomainReport(domain, None, error.reason, sends, VERDICTS["dns-fails"], [finding], [finding])
    if not mx.exists:
        finding = Finding("MX", domain, "none", WRONG, "no such domain")
        return DomainReport(domain, mx, "", sends, VERDICTS["no-domain"], [finding], [finding])
    names = {domain: HostReport(domain, domain)}
    for preference, target in mx.records:
        name = target.lower()
        if name != "." and not name.rpartition(".")[2].isdigit():  # no top-level domain is a number (RFC 3696 §2)
            names.setdefault(name, HostReport(name, name)).preferences.append(preference)
    own, *_ = hosts = list(names.values())[:MAX_HOSTS]
    await asyncio.gather(*(_look_up(dns, host, allow_private=allow_private) for host in hosts))
    # What a sender would try, the most preferred first; of a null MX, those that heed none.
    mx_hosts = sorted((host for host in hosts if host.preferences), key=lambda host: host.preferences[0])
    tried = [own] if mx.is_null_mx or not mx.records else mx_hosts
    published = Publications(dns, mx, own.canonical, sends)
    findings = await published.findings([host.name for host in tried or [own]])
    findings[1:1] = [fault for host in tried if not mx.is_null_mx for fault in host.faults()]
    problems = [finding for finding in findings if finding.status not in ({OK} if strict else {OK, ADVICE})]
    targets = [(host, address) for host in hosts for address in host.addresses]
    probed = targets[:MAX_ADDRESSES]
    tasks = [partial(probe, address, port, host=host.name, mode=ANY, timeout=timeout) for host, address in probed]
    for (host, _), seen in zip(probed, await asyncio.to_thread(run_all, tasks), strict=True):
        host.probes.append(seen)
    left_out = len(names) - len(hosts) + len(targets) - len(probed)
    groups = [[host.behaviours for host in group] for _, group in groupby(tried, lambda host: host.preferences[:1])]
    is_known = not any(host.error for host in tried)
    verdict = verdict_on(mx, [set().union(*group) for group in groups], is_known=is_known, left_out=left_out)
    return DomainReport(domain, mx, "", published.sends, verdict, findings, problems, hosts, left_out)


async def _look_up(dns: Resolver, host: HostReport, *, allow_private: bool) -> None:
    for rdtype in ("AAAA", "A"):
        try:
            answer = await dns.query(host.name, rdtype)
        except DNSError as error:
            host.error = error.reason
            continue
        if answer.is_alias:
            host.canonical = answer.name
        records: tuple[Any, ...] = answer.records
        for record in records:
            if (kind := not_public(record.address)) and not allow_private:
                host.not_public[record.address] = kind
            else:
                host.addresses.append(record.address)


def not_public(address: str) -> str:
    """Return why no sender on the Internet can reach an address, such as "loopback", or ``""``.

    That includes addresses for documentation and other special purposes (RFC 6890, as Python's ipaddress has them), and
    IPv6 addresses that contain such an IPv4 address.
    """
    ip = ipaddress.ip_address(address)
    if ip in _NAT64:
        ip = ipaddress.IPv4Address(int(ip) % 2**32)
    for kind in ("unspecified", "loopback", "link_local", "multicast"):
        if getattr(ip, f"is_{kind}"):
            return kind.replace("_", "-")
    return "" if ip.is_global and not any(ip in network for network in _NOT_ROUTED) else "private or reserved"
