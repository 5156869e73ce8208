"""What images take: disk space, download size, memory, and time until they answer. Needs root and podman.

    measure.py IMAGE...

Each image's own command runs on a copy of its files, as user 65532 on port 2525, and is timed from its start to the
first client that has received the whole line. Figures are medians of 21 starts; 1 MB is 10^6 octets.
"""

import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["HEADER", "drop_page_cache"]

STARTS = 21
START_TIMEOUT = 20.0  # seconds
LINE = b"521 Host does not accept mail\r\n"
ADDRESS = ("127.0.0.1", 2525)

HEADER = """\
| image | files, MB | compressed, MB | RSS, KiB | anonymous, KiB | first line after, ms |
| --- | ---: | ---: | ---: | ---: | ---: |
"""


def main() -> None:
    """Print the table for README.md."""
    images = sys.argv[1:]
    if not images or images[0].startswith("-"):
        sys.stderr.write("usage: measure.py IMAGE...\n")
        sys.exit(2)
    try:
        print(HEADER + "".join(_row(image) for image in images), end="")
    except subprocess.CalledProcessError as error:
        sys.exit(f"measure.py: {' '.join((error.stderr or str(error)).split())}")
    except (OSError, RuntimeError) as error:
        sys.exit(f"measure.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _row(image: str) -> str:
    config = json.loads(_run("podman", "image", "inspect", image))[0]["Config"]
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        shutil.copytree(_run("podman", "image", "mount", image).strip(), root, symlinks=True, dirs_exist_ok=True)
        _run("podman", "image", "unmount", image)
        size = sum(path.stat().st_size for path in _files(root))
        layer = subprocess.check_output(["tar", "-cz", "-C", root, "."])
        (root / "dev").mkdir(exist_ok=True)
        _run("mknod", "--mode=666", f"{root}/dev/null", "c", "1", "3")  # which every engine provides
        drop_page_cache(root)
        command = [*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())]
        starts = [_start(root, command, config.get("Env") or []) for _ in range(STARTS)]
    ms, resident, anonymous = (statistics.median(values) for values in zip(*starts, strict=True))
    return f"| {image} | {size / 1e6:.1f} | {len(layer) / 1e6:.1f} | {resident:,.0f} | {anonymous:,.0f} | {ms:.0f} |\n"


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]


def drop_page_cache(root: Path) -> None:
    """Remove the files below ``root`` from the page cache, so that they are read from disk as after a boot.

    RSS includes the pages that the kernel maps around each page of a file that is used. Since Linux 6.18 these are all
    pages of a large folio of the page cache (mm/filemap.c, filemap_map_pages), and files just written have the largest
    folios: RSS was up to 3 MB higher.
    """
    for path in _files(root):
        with path.open("rb") as file:
            os.fsync(file)  # pages not written to disk yet would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _start(root: Path, command: Sequence[str], variables: Sequence[str]) -> tuple[float, int, int]:
    """Return the milliseconds from the start to the line, then KiB of memory: resident, and anonymous."""
    environment = dict(variable.split("=", 1) for variable in variables) | {"PATH": os.environ["PATH"]}
    if _answers():
        raise RuntimeError("another server answers at {}:{}".format(*ADDRESS))
    begin = time.perf_counter()
    process = subprocess.Popen(
        ["chroot", "--userspec=65532:65532", root, *command], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        while not _answers():
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)}: ended with status {process.returncode}")
            if time.perf_counter() > begin + START_TIMEOUT:
                raise RuntimeError(f"{' '.join(command)}: no line after {START_TIMEOUT:g} s")
            time.sleep(0.0005)
        elapsed = (time.perf_counter() - begin) * 1000
        memory = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        kib = {name: int(value) for name, value in re.findall(r"^(\w+): +(\d+) kB$", memory, re.MULTILINE)}
        return elapsed, kib["Rss"], kib["Anonymous"]
    finally:
        process.terminate()
        process.wait()


def _answers() -> bool:
    try:
        with socket.create_connection(ADDRESS, timeout=5) as client, client.makefile("rb") as lines:
            return lines.readline() == LINE
    except OSError:
        return False


if __name__ == "__main__":
    main()
