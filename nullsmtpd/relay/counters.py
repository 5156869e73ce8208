"""What does the relay's side count? Nothing that tells who asked, or for which domain."""

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from nullsmtpd.runtime.metrics import build_info, metric

__all__ = ["Counters", "Result", "families"]


class Result(enum.StrEnum):
    """What became of a request, with its name in the log and in the metrics; of a domain, one of the first three."""

    NULL_MX = "null_mx"  # replied OK
    NOT_NULL_MX = "not_null_mx"  # replied NOTFOUND, as the next three
    DNS_FAILURE = "dns_failures"  # no usable answer, or the client left before it came
    NO_DOMAIN = "not_domains"  # an address literal, a local part, or anything else that is not a domain
    EXCEPTED = "excepted"  # one of --except
    UNKNOWN_MAP = "unknown_maps"  # replied PERM


@dataclass(slots=True)
class Counters:
    """Totals since the start. A request is counted at once in ``requests``, and then in one of ``results``."""

    requests: int = 0
    results: dict[Result, int] = field(default_factory=lambda: dict.fromkeys(Result, 0))
    cache_hits: int = 0
    queries: int = 0
    invalid_null_mx: int = 0
    malformed: int = 0
    sessions: int = 0
    evicted: int = 0
    refused: int = 0

    def stats(self) -> dict[str, int]:
        """Return all of them by name."""
        totals = asdict(self)
        return {**totals.pop("results"), **totals}


#: The other metrics: totals, and levels.
_METRICS = {
    "cache_hits_total": "Requests answered from the cache.",
    "queries_total": "DNS queries.",
    "invalid_null_mx_total": "DNS answers with an invalid null MX.",
    "malformed_total": "Clients disconnected because they sent something else than netstrings.",
    "sessions_total": "Clients accepted.",
    "evicted_total": "Clients disconnected because they were idle or slow, or to make room for others.",
    "refused_total": "Clients refused because all others were busy.",
    "talking": "Clients connected.",
    "pending": "DNS queries under way.",
    "cached": "Domains in the cache.",
}


def families(stats: Mapping[str, int]) -> list[str]:
    """Return the metrics of the relay's side."""
    by_result = [({"result": str(result)}, stats[result]) for result in Result]
    return [
        metric("nullsmtpd_relay_requests_total", "Requests by result.", by_result),
        *(
            metric(f"nullsmtpd_relay_{name}", text, stats[name.removesuffix("_total")])
            for name, text in _METRICS.items()
        ),
        build_info(),
    ]
