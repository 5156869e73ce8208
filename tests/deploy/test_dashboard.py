"""The dashboard in deploy/grafana: drawn from what the daemon really serves, as Prometheus itself reads it."""

import importlib.util
import itertools
import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import LINE, PATIENCE, Daemon, Start, connect, read_all, require, require_tools

DASHBOARD = Path(__file__).parents[2] / "deploy/grafana/nullsmtpd.json"
METRIC = re.compile(r"\b(?:nullsmtpd|process)_\w+")

# What Grafana puts into a query.
VARIABLES = {"$__rate_interval": "1m", "$__range": "1m", "$instance": ".+"}


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = dashboard()["panels"]
    return found


def queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


@pytest.fixture
def daemon(start: Start) -> Daemon:
    """Return a daemon of two workers that serves its numbers and has answered a client."""
    require(importlib.util.find_spec("prometheus_client"), "prometheus-client")
    daemon = start("--metrics", "127.0.0.1:0", "--workers", "2")
    with connect(daemon.address) as client:
        assert read_all(client) == LINE
    return daemon


def metrics_address(daemon: Daemon) -> str:
    return daemon.lines("metrics")[0].partition("address=")[2]


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE) as response:  # noqa: S310 - http, to loopback
        text: str = response.read().decode()
    return text


def test_every_metric_is_one_that_the_daemon_serves(daemon: Daemon) -> None:
    """No panel asks for a name that is not there, and no number of the responder's own is left without a panel."""
    served = set(METRIC.findall(re.sub("(?m)^#.*", "", get(f"http://{metrics_address(daemon)}/metrics"))))
    asked = set(METRIC.findall(" ".join(queries())))
    assert asked <= served
    assert {name for name in served if name.startswith("nullsmtpd_")} <= asked


def test_panels_do_not_overlap() -> None:
    """Grafana's grid is 24 wide; no cell belongs to two panels."""
    cells: list[tuple[int, int]] = []
    for panel in panels():
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells += itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))
    assert len(set(cells)) == len(cells)


def test_nothing_in_it_belongs_to_one_grafana() -> None:
    """Every data source is the one that the reader chooses; ids within are unique, and it has none of a database."""
    sources = re.findall(r'"uid": "([^"]*)"', json.dumps(dashboard()))
    assert set(sources) == {"${datasource}", dashboard()["uid"]}
    assert "id" not in dashboard()
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)


@pytest.fixture
def prometheus(daemon: Daemon, tmp_path: Path, unused_port: int) -> Iterator[str]:
    """Return the address of a Prometheus that scrapes the daemon."""
    require_tools("prometheus")
    config = {
        "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms"},
        "scrape_configs": [{"job_name": "nullsmtpd", "static_configs": [{"targets": [metrics_address(daemon)]}]}],
    }
    (tmp_path / "prometheus.json").write_text(json.dumps(config))  # which is YAML
    address = f"127.0.0.1:{unused_port}"
    command = (
        *("prometheus", f"--config.file={tmp_path}/prometheus.json", f"--storage.tsdb.path={tmp_path}/data"),
        f"--web.listen-address={address}",
    )
    with (tmp_path / "prometheus.log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            yield address
        finally:
            process.kill()


@pytest.fixture
def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
    return port


def answer(prometheus: str, query: str) -> list[Any]:
    """Return what Prometheus makes of a query, nothing as long as it has not started; a mistake is an exception."""
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    try:
        said = json.loads(get(f"http://{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": query})))
    except urllib.error.HTTPError as error:
        if error.code == 503:  # starting
            return []
        raise AssertionError(f"{query}: {error.read().decode()}") from None
    except urllib.error.URLError:
        return []
    result: list[Any] = said["data"]["result"]
    return result


def wait_for_answers(prometheus: str, waiting: list[str]) -> None:
    """Ask every query until it has an answer."""
    deadline = time.monotonic() + PATIENCE
    while waiting := [query for query in waiting if not answer(prometheus, query)]:
        assert time.monotonic() < deadline, waiting
        time.sleep(0.1)


def test_every_panel_shows_something(prometheus: str) -> None:
    """A real Prometheus that scrapes the daemon has an answer to every query."""
    wait_for_answers(prometheus, queries())


def test_a_mistaken_query_would_be_noticed(prometheus: str) -> None:
    """What Prometheus cannot parse fails the test above, and what nothing matches has no answer."""
    wait_for_answers(prometheus, ["nullsmtpd_workers"])
    with pytest.raises(AssertionError, match="parse error"):
        answer(prometheus, "sum(nullsmtpd_workers")
    assert answer(prometheus, "nullsmtpd_workerz") == []
