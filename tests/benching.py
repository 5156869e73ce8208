"""The load and cost harness, run as users run it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE

if sys.platform != "linux":
    pytest.skip("needs Linux: what a process costs is read from /proc", allow_module_level=True)

__all__ = ["ROOT", "TINY", "accept_queues", "bench"]

ROOT = Path(__file__).parents[1]

#: Bounds of a comparison that ends within seconds.
TINY = ("--rounds", "2", "--seconds", "0.1", "--clients", "4")


def bench(*arguments: str, status: int = 0, json_path: Path | None = None) -> tuple[str, dict[str, Any]]:
    """Run a command, expect its exit status, and return what it printed, stderr last, and its JSON."""
    files = ("--json", str(json_path)) if json_path else ()
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments, *files],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=4 * PATIENCE,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "[Errno" not in done.stderr
    return done.stdout + done.stderr, json.loads(json_path.read_text()) if json_path and json_path.exists() else {}


def accept_queues(port: int) -> list[int]:
    """Return how many connections wait at each socket that listens on this port of 127.0.0.1.

    Of a listening socket (state 0A) the receive queue in /proc/net/tcp is the length of its accept queue, proc(5).
    """
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    found = [row[4] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"]
    return [int(queue.partition(":")[2], 16) for queue in found]
