"""What does the relay's side count? Nothing that tells who asked, or for which domain."""

import dataclasses
from collections.abc import Mapping

from nullsmtpd.runtime.metrics import Family, build_info

__all__ = ["Counters", "families"]


@dataclasses.dataclass(slots=True)
class Counters:
    """Totals since the start. A request is counted at once in ``requests``, and then in one of the next six."""

    requests: int = 0
    null_mx: int = 0  # replied OK
    not_null_mx: int = 0  # replied NOTFOUND, as the next three
    dns_failures: int = 0  # no usable answer, or the client left before it came
    not_domains: int = 0  # an address literal, a local part, or anything else that is not a domain
    excepted: int = 0  # one of --except
    unknown_maps: int = 0  # replied PERM
    cache_hits: int = 0
    queries: int = 0
    invalid_null_mx: int = 0
    malformed: int = 0
    sessions: int = 0
    evicted: int = 0
    refused: int = 0


#: Counters that are labels of one metric.
_RESULTS = ("null_mx", "not_null_mx", "dns_failures", "not_domains", "excepted", "unknown_maps")
_TOTALS = {
    "cache_hits": "Requests answered from the cache.",
    "queries": "DNS queries.",
    "invalid_null_mx": "DNS answers with an invalid null MX.",
    "malformed": "Clients disconnected because they sent something else than netstrings.",
    "sessions": "Clients accepted.",
    "evicted": "Clients disconnected because they were idle or slow, or to make room for others.",
    "refused": "Clients refused because all others were busy.",
}
_GAUGES = {
    "talking": "Clients connected.",
    "pending": "DNS queries under way.",
    "cached": "Domains in the cache.",
}


def families(gauges: Mapping[str, int], counters: Counters) -> list[Family]:
    """Return the metrics of the relay's side."""
    values = dataclasses.asdict(counters)
    prefix = "nullsmtpd_relay"
    by_result = [({"result": name}, values[name]) for name in _RESULTS]
    totals = [Family(f"{prefix}_{name}_total", "counter", text, [({}, values[name])]) for name, text in _TOTALS.items()]
    levels = [Family(f"{prefix}_{name}", "gauge", text, [({}, gauges[name])]) for name, text in _GAUGES.items()]
    requests = Family(f"{prefix}_requests_total", "counter", "Requests by result.", by_result)
    return [requests, *totals, *levels, build_info()]
