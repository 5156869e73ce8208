"""What does the relay's side count? Nothing that tells who asked, or for which domain."""

import dataclasses
from collections.abc import Mapping

from nullsmtpd.runtime.metrics import Family, build_info

__all__ = ["Counters", "families"]


@dataclasses.dataclass(slots=True)
class Counters:
    """Totals since the start. Each request is counted at once in ``requests``, and later in one of the next six."""

    requests: int = 0
    #: Replied OK: the domain has a null MX.
    null_mx: int = 0
    #: Replied NOTFOUND, as all that follow: the domain has none.
    not_null_mx: int = 0
    #: DNS gave no answer, or the client left before it came.
    dns_failures: int = 0
    #: The key was an address literal, a local part, too long, or anything else that is not a domain.
    not_domains: int = 0
    #: The domain is one of --except.
    excepted: int = 0
    #: Replied PERM: the request was for a map that does not exist.
    unknown_maps: int = 0
    cache_hits: int = 0
    queries: int = 0
    invalid_null_mx: int = 0
    malformed: int = 0
    sessions: int = 0
    evicted: int = 0
    refused: int = 0


#: The results of requests, as labels.
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
    totals = dataclasses.asdict(counters)
    by_result = [({"result": name}, totals[name]) for name in _RESULTS]
    return [
        Family("nullsmtpd_relay_requests_total", "counter", "Requests by result.", by_result),
        *(
            Family(f"nullsmtpd_relay_{name}_total", "counter", text, [({}, totals[name])])
            for name, text in _TOTALS.items()
        ),
        *(Family(f"nullsmtpd_relay_{name}", "gauge", text, [({}, gauges[name])]) for name, text in _GAUGES.items()),
        build_info(),
    ]
