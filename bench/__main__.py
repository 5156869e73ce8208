"""The command ``python -m bench``; everything is imported under the guard, so that Ctrl-C never shows a traceback."""

import os
import sys
from pathlib import Path


def main() -> int:
    """Run the command of this process's arguments; return its exit status."""
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115 - closed by whoever started this process
    if sys.platform != "linux":
        sys.stderr.write("bench: only on Linux: what a process costs is read from /proc\n")
        return 1
    try:
        from bench.command import run

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("bench: interrupted before there was anything to report\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
