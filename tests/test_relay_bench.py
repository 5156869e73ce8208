"""``python -m bench relay`` within tiny bounds: it ends by itself, and every figure is there; no time is asserted."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE, require_root, require_tools

if not os.environ.get("CI"):  # in CI nothing may be missing
    if sys.platform != "linux":
        pytest.skip("needs Linux: what a process costs is read from /proc", allow_module_level=True)
    if importlib.util.find_spec("hdrh") is None:
        pytest.skip("needs the extra `bench`", allow_module_level=True)

ROOT = Path(__file__).parent.parent


def bench_relay(tmp_path: Path, *arguments: str) -> tuple[str, dict[str, list[dict[str, float]]]]:
    """Run it for two small rounds; return what it printed and its rounds."""
    path = tmp_path / "bench.json"
    bounds = ("--rounds", "2", "--each", "50", "--clients", "2", "--json", str(path))
    done = subprocess.run(
        [sys.executable, "-m", "bench", "relay", *bounds, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=4 * PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, json.loads(path.read_text())["rounds"]


def test_lookups_are_measured_cached_and_uncached_beside_a_fixed_reply(tmp_path: Path) -> None:
    """Only what was not asked for before costs the name server something."""
    require_tools("dnsmasq")
    text, rounds = bench_relay(tmp_path, "--markdown", str(tmp_path / "table.md"))
    assert set(rounds) == {"fixed reply", "cached", "uncached"}
    for series in rounds.values():
        assert [one["count"] for one in series] == [50, 50]
        assert all(one["cpu_us"] > 0 and one["p99_us"] >= one["p50_us"] > 0 for one in series)
    assert all(one["name_server_us"] > 0 for one in rounds["uncached"])
    assert all(one["name_server_us"] == 0 for one in rounds["cached"])
    assert "CPU: of the server, per lookup" in text
    assert (tmp_path / "table.md").read_text().startswith("| arm |")


def test_a_whole_rcpt_is_measured_with_each_way_to_look(tmp_path: Path) -> None:
    """Postfix without a look, with its own and with ours; each reply is checked on the way, 556 among them."""
    require_tools("dnsmasq", "postfix", "unshare", "ip")
    require_root()
    text, rounds = bench_relay(tmp_path, "--rcpt")
    looks = ("no look", "reject_unknown_recipient_domain", "nullsmtpd relay")
    assert set(rounds) == {f"{look}, {kind}" for look in looks for kind in ("plain", "null MX")}
    assert all(one["cpu_us"] > 0 for series in rounds.values() for one in series)
    assert "per RCPT" in text
