"""Which counters does Prometheus get?"""

import errno
from collections.abc import Mapping

from nullsmtpd.runtime.metrics import build_info, metric

__all__ = ["families"]

_TOTALS = {
    "connections": "Connections accepted.",
    "cut_short": "Lingering clients evicted early to make room for newer ones.",
    "drained": "Clients that were still sending at their linger deadline.",
    "sessions": "Sessions begun in the modes session and mail.",
    "send_errors": "Clients that had gone before the line could be sent.",
    "access_suppressed": "Access log lines that were suppressed by the rate limit.",
}
_GAUGES = {
    "lingering": "Answered clients that have not closed yet.",
    "draining": "Clients whose input is being discarded.",
    "talking": "Clients with a session.",
}

#: Accept errors that an alert may be based on are there from the start, as 0.
_EXPECTED_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def families(stats: Mapping[str, int], accept_errors: Mapping[int, int], mode: str) -> list[str]:
    """Return the responder's own metrics; no label tells an address."""
    errors = dict.fromkeys(_EXPECTED_ERRNOS, 0) | dict(accept_errors)
    by_errno = [({"errno": errno.errorcode.get(number, str(number))}, count) for number, count in errors.items()]
    return [
        *(metric(f"nullsmtpd_{name}_total", text, stats[name]) for name, text in _TOTALS.items()),
        metric("nullsmtpd_accept_errors_total", "Failed accepts by errno.", by_errno),
        *(metric(f"nullsmtpd_{name}", text, stats[name]) for name, text in _GAUGES.items()),
        build_info(mode=mode),
    ]
