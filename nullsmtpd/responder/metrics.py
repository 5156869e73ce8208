"""The numbers for Prometheus: what prometheus-client makes of the counters, at /metrics and nowhere else."""

import errno
import functools
import importlib
import socket
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nullsmtpd import __version__
from nullsmtpd.cli.arguments import UsageError
from nullsmtpd.responder.counters import Counters
from nullsmtpd.runtime.process import max_files

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["require_library", "serve_metrics"]

_TOTALS = {
    "connections": "Connections accepted.",
    "cut_short": "Lingering clients let go early to make room for newer ones.",
    "drained": "Clients that were still sending when their linger was up.",
    "sessions": "Dialogues begun in the modes session and mail.",
    "send_errors": "Clients that were gone before the line could be sent.",
    "access_left_out": "Lines that the access log left out because there were too many.",
    "worker_restarts": "Workers that had to be replaced.",
}
_LEVELS = {
    "workers": "Processes that answer.",
    "lingering": "Answered clients that have not closed yet.",
    "draining": "Clients whose input is being discarded.",
    "talking": "Clients in a dialogue.",
}

#: Accept errors that an alert may be set on are there from the start, as 0.
_EXPECTED_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def require_library(mode: str) -> None:
    """Load all that a scrape needs; raise `nullsmtpd.cli.arguments.UsageError` when prometheus-client is not installed."""
    try:
        importlib.import_module("prometheus_client")
    except ModuleNotFoundError:
        raise UsageError(
            "--metrics needs prometheus-client; install it: pip install 'nullsmtpd-521[metrics]'"
        ) from None
    for later in ("prometheus_client.openmetrics.exposition", "nullsmtpd.runtime.metrics_server"):
        importlib.import_module(later)
    _build_info(mode)


def serve_metrics(listeners: list[socket.socket], counters: list[Counters], mode: str) -> None:
    """Serve the sums of ``counters`` over HTTP on ``listeners``, in threads that end with the process."""
    from prometheus_client import CollectorRegistry, make_wsgi_app

    from nullsmtpd.runtime.metrics_server import serve_on  # an HTTP server is 2 MB of an image

    registry = CollectorRegistry()
    registry.register(_Numbers(counters, mode))
    metrics = make_wsgi_app(registry)
    one_at_a_time = threading.Lock()

    def app(environ: dict[str, Any], start_response: Any) -> Any:  # noqa: ANN401 - PEP 3333, see wsgiref.types
        if environ["PATH_INFO"] == "/metrics":
            with one_at_a_time:
                try:
                    return metrics(environ, start_response)
                except (TypeError, ValueError):  # over a faulty Accept, which RFC 9110 §12.5.1 lets us ignore
                    return metrics(environ | {"HTTP_ACCEPT": "*/*"}, start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"The numbers are at /metrics.\n"]

    for listener in listeners:
        serve_on(listener, app)


class _Numbers:
    """A collector in the sense of prometheus-client: the sums over all processes, at the moment of the scrape."""

    def __init__(self, counters: list[Counters], mode: str) -> None:
        self._counters = counters
        self._mode = mode
        self._cpu_seconds: dict[int, float] = {}  # by process
        self._cpu_seconds_of_the_dead = 0.0
        self._told_cpu_seconds = 0.0

    def collect(self) -> Iterator["Metric"]:
        """Yield one metric after the other."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        total = Counters.total(self._counters)
        for name, meaning in _TOTALS.items():
            yield CounterMetricFamily(f"nullsmtpd_{name}", meaning, value=getattr(total, name))
        errors = CounterMetricFamily("nullsmtpd_accept_errors", "Failed accepts by errno.", labels=["errno"])
        for number, count in (dict.fromkeys(_EXPECTED_ERRNOS, 0) | total.accept_errors).items():
            errors.add_metric([errno.errorcode.get(number, str(number))], count)
        yield errors
        for name, meaning in _LEVELS.items():
            yield GaugeMetricFamily(f"nullsmtpd_{name}", meaning, value=getattr(total, name))
        yield _build_info(self._mode)
        yield from self._process_metrics(total)

    def _process_metrics(self, total: Counters) -> Iterator["Metric"]:
        """Yield the usual ``process_`` metrics, summed over our processes."""
        from prometheus_client import ProcessCollector
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        pids = [counters.process for counters in self._counters if counters.process]
        by_name: dict[str, list[Metric]] = {}
        for pid in pids:
            for metric in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                by_name.setdefault(metric.name, []).append(metric)
                if metric.name == "process_cpu_seconds":
                    self._cpu_seconds[pid] = metric.samples[0].value
        for name, metrics in by_name.items():
            values = [metric.samples[0].value for metric in metrics]
            if name == "process_cpu_seconds":
                yield CounterMetricFamily(name, metrics[0].documentation, value=self._all_cpu_seconds(pids))
            elif name not in {"process_open_fds", "process_max_fds"}:
                value = min(values) if name == "process_start_time_seconds" else sum(values)
                yield GaugeMetricFamily(name, metrics[0].documentation, value=value)
        # Not what /proc says: after --user a process may not look into another's descriptors.
        yield GaugeMetricFamily(
            "process_open_fds",
            "Number of open file descriptors.",
            value=total.descriptors + total.lingering + total.draining + total.talking,
        )
        yield GaugeMetricFamily(
            "process_max_fds", "Maximum number of open file descriptors.", value=max_files() * len(pids)
        )

    def _all_cpu_seconds(self, living: list[int]) -> float:
        """Return the seconds of all processes there ever were: a counter must not fall when a worker is replaced."""
        for pid in self._cpu_seconds.keys() - living:
            self._cpu_seconds_of_the_dead += self._cpu_seconds.pop(pid)
        now = self._cpu_seconds_of_the_dead + sum(self._cpu_seconds.values())
        self._told_cpu_seconds = max(self._told_cpu_seconds, now)  # a sum in another order may differ by a last digit
        return self._told_cpu_seconds


@functools.cache
def _build_info(mode: str) -> "Metric":
    from prometheus_client.core import GaugeMetricFamily
    from uvloop._version import __version__ as uvloop_version

    info = {
        "version": __version__,
        "mode": mode,
        "python": ".".join(map(str, sys.version_info[:3])),
        "uvloop": uvloop_version,
    }
    family = GaugeMetricFamily("nullsmtpd_build_info", "What runs here; the value is 1.", labels=list(info))
    family.add_metric(list(info.values()), 1)
    return family
