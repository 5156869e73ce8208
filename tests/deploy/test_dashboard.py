"""The dashboard in deploy/grafana: every panel shows something of the real daemon, by a real Prometheus."""

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
from support import LINE, PATIENCE, Daemon, Start, connect, read_all, require_tools

DASHBOARD = Path(__file__).parents[2] / "deploy/grafana/nullsmtpd.json"
METRIC = re.compile(r"\b(?:nullsmtpd|process)_\w+")

# What Grafana replaces in a query.
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
    """Return a daemon that serves metrics and has answered a client."""
    daemon = start("--metrics", "127.0.0.1:0")
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
    """No panel asks for a metric that does not exist, and each of the responder's own has a panel."""
    served = set(METRIC.findall(re.sub("(?m)^#.*", "", get(f"http://{metrics_address(daemon)}/metrics"))))
    asked = set(METRIC.findall(" ".join(queries())))
    assert asked <= served
    assert {name for name in served if name.startswith("nullsmtpd_")} <= asked


def test_every_metric_is_documented(daemon: Daemon) -> None:
    """deploy/README.md lists the responder's own, and no other."""
    served = set(METRIC.findall(re.sub("(?m)^#.*", "", get(f"http://{metrics_address(daemon)}/metrics"))))
    table = "".join(re.findall(r"^\| `nullsmtpd_.*", (DASHBOARD.parents[1] / "README.md").read_text(), re.MULTILINE))
    assert set(METRIC.findall(table)) == {name for name in served if name.startswith("nullsmtpd_")}


def test_panels_do_not_overlap() -> None:
    """Grafana's grid is 24 wide; no cell belongs to two panels."""
    cells: list[tuple[int, int]] = []
    for panel in panels():
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells += itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))
    assert len(set(cells)) == len(cells)


def test_it_can_be_imported_anywhere() -> None:
    """Every data source is the one that the user selects; panel ids are unique, and there is no id of a database."""
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


def result_of(prometheus: str, query: str) -> list[Any]:
    """Return the result of a query, nothing until Prometheus has started; raise an exception if it is invalid."""
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    try:
        reply = json.loads(get(f"http://{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": query})))
    except urllib.error.HTTPError as error:
        if error.code == 503:  # starting
            return []
        raise AssertionError(f"{query}: {error.read().decode()}") from None
    except urllib.error.URLError:
        return []
    result: list[Any] = reply["data"]["result"]
    return result


def wait_for_results(prometheus: str, waiting: list[str]) -> None:
    """Repeat every query until it has a result."""
    deadline = time.monotonic() + PATIENCE
    while waiting := [query for query in waiting if not result_of(prometheus, query)]:
        assert time.monotonic() < deadline, waiting
        time.sleep(0.1)


def test_every_panel_shows_something(prometheus: str) -> None:
    """A Prometheus that scrapes the daemon has a result for every query."""
    wait_for_results(prometheus, queries())


def test_a_mistaken_query_would_be_noticed(prometheus: str) -> None:
    """An invalid query fails the test above, and a query that matches nothing has no result."""
    wait_for_results(prometheus, ["nullsmtpd_lingering"])
    with pytest.raises(AssertionError, match="parse error"):
        result_of(prometheus, "sum(nullsmtpd_lingering")
    assert result_of(prometheus, "nullsmtpd_lingerings") == []
