"""What was found out, for people and for programs."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from nullsmtpd.check.outcome import Probe

if TYPE_CHECKING:  # what belongs to a domain is loaded by who asks for one
    from nullsmtpd.check.domain import DomainReport, HostReport
    from nullsmtpd.nullmx import MXAnswer

__all__ = ["as_json", "domain_lines"]


def domain_lines(report: "DomainReport") -> list[str]:
    """Return lines for people, in printable ASCII: the MX set, each address, and the verdict last."""
    lines = [f"{report.domain} {_mx_words(report)}"]
    for host in report.hosts:
        lines += _host_lines(host)
    if report.left_out:
        lines.append(f"{report.domain}: {report.left_out} more names and addresses are not asked: too many")
    return [*lines, f"{report.domain} {'good' if report.is_good else 'bad'}: {report.verdict.words}"]


def _mx_words(report: "DomainReport") -> str:
    mx = report.mx
    if mx is None:
        return f"MX: DNS does not tell: {report.error}"
    if not mx.exists:
        return "MX: no such domain"
    if not mx.records:
        return "MX: none, so mail goes to its own addresses (RFC 5321 section 5.1)"
    records = ", ".join(f"{record.preference} {record.target}" for record in mx.records)
    return f"MX: {records} (TTL {mx.ttl} s): {_null_mx_words(mx)}"


def _null_mx_words(mx: "MXAnswer") -> str:
    if mx.is_null_mx:
        return "a null MX"
    return "a faulty null MX: it must be alone, and of preference 0" if mx.is_faulty_null_mx else "no null MX"


def _host_lines(host: "HostReport") -> list[str]:
    lines = [str(seen) for seen in host.probes]
    if host.error:
        return [*lines, f"{host.name}: DNS does not tell {'all of ' if lines else ''}its addresses: {host.error}"]
    return lines if lines or host.left_out else [f"{host.name}: no address"]


def as_json(probes: Iterable[Probe], domain: "DomainReport | None", *, is_good: bool) -> str:
    """Return one line of JSON in ASCII. Times are in milliseconds; octets are text, one character for each of them."""
    found: dict[str, object] = {"good": is_good, "hosts": [_probe(seen) for seen in probes]}
    if domain is not None:
        found["domain"] = _domain(domain)
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


def _domain(report: "DomainReport") -> dict[str, object]:
    from nullsmtpd.check.verdicts import answer_of

    mx = report.mx
    return {
        "name": report.domain,
        "good": report.is_good,
        "verdict": report.verdict.name,
        "words": report.verdict.words,
        "error": report.error or None,
        "exists": mx.exists if mx else None,
        "mx": [{"preference": record.preference, "target": record.target} for record in mx.records] if mx else None,
        "ttl": mx.ttl if mx else None,
        "null_mx": mx.is_null_mx if mx else None,
        "left_out": report.left_out,
        "hosts": [
            {
                "name": host.name,
                "preferences": list(host.preferences),
                "error": host.error or None,
                "left_out": host.left_out,
                "addresses": [_probe(seen) | {"answer": answer_of(seen).name.lower()} for seen in host.probes],
            }
            for host in report.hosts
        ],
    }
