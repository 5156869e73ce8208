"""The results, as lines for people and as JSON for programs."""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nullsmtpd.check.probe import Probe
from nullsmtpd.check.verdicts import behaviour_of

if TYPE_CHECKING:  # imported only for --domain
    from nullsmtpd.check.domain import DomainReport, HostReport

__all__ = ["as_json", "domain_lines"]


def domain_lines(report: "DomainReport", *, strict: bool = False) -> list[str]:
    """Return lines in printable ASCII: what is published, each address, and the verdict last."""
    lines = [str(finding) for finding in report.findings]
    for host in report.hosts:
        lines += map(str, host.probes)
        if host.error:
            lines.append(f"{host.name}: DNS does not answer for all of its addresses: {host.error}")
    if report.left_out:
        lines.append(f"{report.domain}: {report.left_out} more names and addresses are not probed: too many")
    words = report.verdict.words
    if report.verdict.is_good and (problems := report.problems(strict=strict)):
        words += "; but see above: " + ", ".join(f"{finding.name} {finding.subject}" for finding in problems)
    return [*lines, f"{report.domain} {'good' if report.passes(strict=strict) else 'bad'}: {words}"]


def as_json(probes: Iterable[Probe], domains: Sequence["DomainReport"], *, is_good: bool, strict: bool) -> str:
    """Return one line of JSON in ASCII. Times are in milliseconds; octets are text, one character for each of them."""
    found: dict[str, object] = {"good": is_good, "hosts": [_probe(seen) for seen in probes]}
    if domains:
        found["domains"] = [_domain(report, strict=strict) for report in domains]
    return json.dumps(found)


def _probe(seen: Probe) -> dict[str, object]:
    return {
        "host": seen.host,
        "address": seen.address or None,
        "port": seen.port,
        "family": ("IPv6" if ":" in seen.address else "IPv4") if seen.address else None,
        "good": seen.is_good,
        "fault": seen.fault or None,
        "received": seen.received.decode("latin-1"),
        "replies": [{"code": int(reply.code), "text": reply.text} for reply in seen.replies],
        "ending": seen.ending,
        "connect_ms": _milliseconds(seen.connected),
        "first_octet_ms": _milliseconds(seen.first_octet),
        "end_ms": _milliseconds(seen.ended),
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)


def _domain(report: "DomainReport", *, strict: bool) -> dict[str, object]:
    mx = report.mx
    return {
        "name": report.domain,
        "good": report.passes(strict=strict),
        "verdict": report.verdict.name,
        "words": report.verdict.words,
        "sends": report.sends,
        "error": report.error or None,
        "exists": mx.exists if mx else None,
        "mx": [record._asdict() for record in mx.records] if mx else None,
        "ttl": mx.ttl if mx else None,
        "null_mx": mx.is_null_mx if mx else None,
        "findings": [finding._asdict() for finding in report.findings],
        "left_out": report.left_out,
        "hosts": [_host(host) for host in report.hosts],
    }


def _host(host: "HostReport") -> dict[str, object]:
    return {
        "name": host.name,
        "preferences": list(host.preferences),
        "error": host.error or None,
        "canonical": host.canonical,
        "not_public": dict(host.not_public),
        "left_out": len(host.addresses) - len(host.probes),
        "addresses": [_probe(seen) | {"answer": behaviour_of(seen).name.lower()} for seen in host.probes],
    }
