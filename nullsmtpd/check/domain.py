"""A domain as a sender of mail sees it: its MX set, the addresses behind that, and what answers there."""

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from nullsmtpd.check.dialogue import ANY
from nullsmtpd.check.hosts import probe_address, run_at_once
from nullsmtpd.check.outcome import Probe
from nullsmtpd.check.probe import TIMEOUT, probe
from nullsmtpd.check.verdicts import Answer, Verdict, answer_of, verdict_on
from nullsmtpd.nullmx import DNSError, MXAnswer, domain_of, look_up_addresses, look_up_mx

__all__ = ["MAX_ADDRESSES", "DomainReport", "HostReport", "check_domain"]

#: Ask no more addresses for one domain, and look up no more names. The largest mail hosters have a few dozen; a domain
#: of thousands, which any owner of one can make, would have us connect to all of them. At five seconds each, for those
#: that are silent, and `run_at_once`'s number at a time this takes 20.
MAX_ADDRESSES = 100

_ROOT = "."


class HostReport(NamedTuple):
    """One name with its addresses in DNS. ``preferences``: those of its MX records; none for the domain's own name.

    ``error``: why DNS does not tell all of them, or ``""``. ``probes``: one for each address that it tells, by
    `nullsmtpd.probe` in mode ``any``, but for as many as are ``left_out``.
    """

    name: str
    preferences: tuple[int, ...]
    error: str
    probes: list[Probe]
    left_out: int


class DomainReport(NamedTuple):
    """What was found out about a domain.

    ``mx``: its MX set, or `None` when DNS does not tell; ``error`` says why. ``hosts``: the domain's own name first,
    then those in the MX set. ``left_out``: how many of its names and of their addresses were not asked, as there are
    more than `MAX_ADDRESSES`. ``verdict``: what a sender experiences.
    """

    domain: str
    mx: MXAnswer | None
    error: str
    hosts: list[HostReport]
    left_out: int
    verdict: Verdict

    @property
    def is_good(self) -> bool:
        """Whether mail for the domain is refused and its author is told at once."""
        return self.verdict.is_good


async def check_domain(
    domain: str,
    *,
    port: int = 25,
    resolver: tuple[str, int] | None = None,
    timeout: float = TIMEOUT,  # noqa: ASYNC109 - one for each question and each address, kept where it is asked
) -> DomainReport:
    """Ask DNS for the MX set of ``domain`` and for all addresses, connect to each, and say what a sender experiences.

    A server that greets with 220 is told EHLO and MAIL, to see whether it means that, and no recipient. Without an MX
    mail goes to the domain's own addresses (RFC 5321 §5.1); they are asked in any case. ``resolver`` and errors are
    those of `nullsmtpd.look_up_mx`, but for `DNSError`, which becomes part of the report.
    """
    domain = domain_of(domain)
    mx, error = None, ""
    try:
        mx = await look_up_mx(domain, resolver=resolver, timeout=timeout)
    except DNSError as failure:
        error = failure.reason
    names = _names(domain, mx)
    hosts = await _look_at(names[:MAX_ADDRESSES], port, resolver, timeout)
    left_out = len(names) - len(hosts) + sum(host.left_out for host in hosts)
    return DomainReport(domain, mx, error, hosts, left_out, _verdict(mx, hosts, left_out))


async def _look_at(
    names: list[tuple[str, tuple[int, ...]]],
    port: int,
    resolver: tuple[str, int] | None,
    timeout: float,  # noqa: ASYNC109 - see `check_domain`
) -> list[HostReport]:
    found = await asyncio.gather(*(look_up_addresses(name, resolver=resolver, timeout=timeout) for name, _ in names))
    targets = [(name, address) for (name, _), (addresses, _) in zip(names, found, strict=True) for address in addresses]
    ask = partial(probe, mode=ANY, timeout=timeout)
    tasks = [partial(probe_address, name, address, port, ask) for name, address in targets[:MAX_ADDRESSES]]
    probes = await asyncio.to_thread(run_at_once, tasks)
    hosts = []
    for (name, preferences), (addresses, error) in zip(names, found, strict=True):
        asked = [seen for seen in probes if seen.host == name]
        hosts.append(HostReport(name, preferences, error, asked, len(addresses) - len(asked)))
    return hosts


def _names(domain: str, mx: MXAnswer | None) -> list[tuple[str, tuple[int, ...]]]:
    """Return the domain's own name, and those in its MX set with their preferences, each once."""
    preferences: dict[str, tuple[int, ...]] = {domain: ()}
    for record in mx.records if mx else ():
        if record.target != _ROOT:
            name = record.target.lower()
            preferences[name] = (*preferences.get(name, ()), record.preference)
    return list(preferences.items())


def _verdict(mx: MXAnswer | None, hosts: list[HostReport], left_out: int) -> Verdict:
    own = hosts[0]
    tried = [host for host in hosts if host.preferences] if mx and mx.records else [own]
    is_known = mx is not None and not any(host.error for host in tried)
    return verdict_on(mx, _answers([own]), _groups(tried) if mx else [], is_known=is_known, left_out=left_out)


def _groups(hosts: list[HostReport]) -> list[set[Answer]]:
    """Return what the hosts answer, those of the lowest preference first; the domain's own name has none."""
    preferences = sorted({min(host.preferences, default=0) for host in hosts})
    return [
        _answers(host for host in hosts if min(host.preferences, default=0) == preference) for preference in preferences
    ]


def _answers(hosts: Iterable[HostReport]) -> set[Answer]:
    return {answer_of(seen) for host in hosts for seen in host.probes}
