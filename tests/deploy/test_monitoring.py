"""deploy/README.md on monitoring: its table is what the programs report, and its configuration is theirs."""

import subprocess
from pathlib import Path

from monitors import block, monitor_table, shown_table
from support import PATIENCE, require_tools


def test_the_table_shows_what_monitoring_programs_report() -> None:
    """Every probe against a responder in each mode, one that hangs, and a server that accepts mail."""
    assert shown_table() == [list(row) for row in monitor_table()]


def test_the_configuration_of_haproxy_is_valid(tmp_path: Path) -> None:
    """As it is in the README, behind a frontend and with the times that haproxy wants to be set."""
    require_tools("haproxy")
    defaults = "defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 5s\n    timeout server 5s\n"
    frontend = "frontend smtp\n    bind 127.0.0.1:2525\n    default_backend refuses\n"
    (configuration := tmp_path / "haproxy.cfg").write_text(defaults + frontend + block("haproxy"))
    command = ("haproxy", "-c", "-V", "-f", str(configuration))
    checked = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_configuration_of_the_blackbox_exporter_is_valid(tmp_path: Path) -> None:
    """As it is in the README."""
    require_tools("prometheus-blackbox-exporter")
    (configuration := tmp_path / "blackbox.yml").write_text(block("yaml"))
    command = ("prometheus-blackbox-exporter", f"--config.file={configuration}", "--config.check")
    assert subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False).returncode == 0
