"""A domain as a sender of mail sees it: its MX set, the addresses behind that, and what answers there."""

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from nullsmtpd.check.modes import ANY
from nullsmtpd.check.outcome import Probe
from nullsmtpd.check.probe import TIMEOUT, probe
from nullsmtpd.check.verdicts import Answer, Verdict, answer_of, verdict_on
from nullsmtpd.null_mx import DNSError, MXAnswer, domain_of, look_up_addresses, look_up_mx

__all__ = ["DomainReport", "HostReport", "check_domain"]

_ROOT = "."


class HostReport(NamedTuple):
    """One name with its addresses in DNS. ``preferences``: those of its MX records; none for the domain's own name.

    ``error``: why DNS does not tell all of them, or ``""``. ``probes``: one for each address that it tells, by
    `nullsmtpd.probe` in mode ``any``.
    """

    name: str
    preferences: tuple[int, ...]
    error: str
    probes: list[Probe]


class DomainReport(NamedTuple):
    """What was found out about a domain.

    ``mx``: its MX set, or `None` when DNS does not tell; ``error`` says why. ``hosts``: the domain's own name first,
    then those in the MX set. ``verdict``: what a sender experiences.
    """

    domain: str
    mx: MXAnswer | None
    error: str
    hosts: list[HostReport]
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
    preferences: dict[str, list[int]] = {domain: []}
    for record in mx.records if mx else ():
        if record.target != _ROOT:
            preferences.setdefault(record.target.lower(), []).append(record.preference)
    look = partial(_look_at, port=port, resolver=resolver, timeout=timeout)
    hosts = await asyncio.gather(*(look(name, tuple(numbers)) for name, numbers in preferences.items()))
    return DomainReport(domain, mx, error, hosts, _verdict(mx, hosts))


async def _look_at(
    name: str,
    preferences: tuple[int, ...],
    port: int,
    resolver: tuple[str, int] | None,
    timeout: float,  # noqa: ASYNC109 - see `check_domain`
) -> HostReport:
    addresses, error = await look_up_addresses(name, resolver=resolver, timeout=timeout)
    ask = partial(probe, port=port, mode=ANY, timeout=timeout)
    probes = await asyncio.gather(*(asyncio.to_thread(ask, address) for address in addresses))
    for seen in probes:
        seen.host = name
    return HostReport(name, preferences, error, probes)


def _verdict(mx: MXAnswer | None, hosts: list[HostReport]) -> Verdict:
    own = hosts[0]
    tried = [host for host in hosts if host.preferences] if mx and mx.records else [own]
    is_known = mx is not None and not any(host.error for host in tried)
    return verdict_on(mx, _answers([own]), _groups(tried) if mx else [], is_known=is_known)


def _groups(hosts: list[HostReport]) -> list[set[Answer]]:
    """Return what the hosts answer, those of the lowest preference first; the domain's own name has none."""
    preferences = sorted({min(host.preferences, default=0) for host in hosts})
    return [
        _answers(host for host in hosts if min(host.preferences, default=0) == preference) for preference in preferences
    ]


def _answers(hosts: Iterable[HostReport]) -> set[Answer]:
    return {answer_of(seen) for host in hosts for seen in host.probes}
