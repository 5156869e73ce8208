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

__all__ = ["ROOT", "TINY", "bench"]

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
