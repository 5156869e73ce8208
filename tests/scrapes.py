"""Reading a daemon's metrics as Prometheus does, and as others might."""

import contextlib
import http.client
import re

from prometheus_client.parser import text_string_to_metric_families
from support import PATIENCE, Daemon

__all__ = ["WITH_METRICS", "descriptors_at_rest", "metrics_address", "request", "samples", "scrape"]

WITH_METRICS = ("--metrics", "127.0.0.1:0")


def metrics_address(daemon: Daemon) -> tuple[str, int]:
    """Return where the daemon serves its metrics, by its log."""
    match = re.search(r"address=(\S+):(\d+)", daemon.lines("metrics")[0])
    assert match
    return match[1], int(match[2])


def request(
    daemon: Daemon, method: str = "GET", path: str = "/metrics", headers: dict[str, str] | None = None
) -> tuple[http.client.HTTPResponse, str]:
    """Send one request; return the response and its body."""
    connection = http.client.HTTPConnection(*metrics_address(daemon), timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response, response.read().decode()


def samples(text: str) -> dict[str, float]:
    """Return the value of each sample by its name, and by its errno where it has that label."""
    return {
        ":".join([sample.name, *(value for label, value in sample.labels.items() if label == "errno")]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(daemon: Daemon) -> dict[str, float]:
    """Return what `samples` makes of the daemon's metrics."""
    response, text = request(daemon)
    assert response.status == 200
    return samples(text)


def descriptors_at_rest(daemon: Daemon) -> int:
    """Return the number of open descriptors without that of a scrape, after the event loop has served its first one."""
    scrape(daemon)  # from its first stream on, the event loop keeps one in reserve
    daemon.wait_for(lambda: scrape(daemon)["process_open_fds"] == daemon.descriptors() + 1, "the end of the scrapes")
    return daemon.descriptors()
