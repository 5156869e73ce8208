"""The command ``python -m bench``; everything is imported under the guard, so that Ctrl-C never shows a traceback."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115 - closed by whoever started this process
    if sys.platform != "linux":
        sys.exit("bench: only on Linux: what a process costs is read from /proc")
    try:
        from bench.command import run

        sys.exit(run())
    except KeyboardInterrupt:
        sys.stderr.write("bench: interrupted before there was anything to report\n")
        sys.exit(130)
