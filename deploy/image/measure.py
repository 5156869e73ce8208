"""What an image takes: room, room on its way from a registry, memory, and time until it answers.

    measure.py IMAGE...

A table in Markdown. Needs root, podman, and port 2525 free: each image's own command runs on a copy of its files, as
user 65532, and is timed from its start to the first client that has the line. All find the page cache as a host does
that has just started, see `read_from_disk`.
"""

import gzip
import json
import os
import re
import shutil
import socket
import stat
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

__all__ = ["read_from_disk"]

LINE = b"521 Host does not accept mail\r\n"
ADDRESS = ("127.0.0.1", 2525)

#: Starts that the medians are of.
STARTS = 21


class Start(NamedTuple):
    """Milliseconds from the start of the process to the line; KiB that it then takes: all, and its share."""

    milliseconds: float
    resident: int
    proportional: int


def main() -> None:
    """Print the table."""
    print("| image | files | compressed | RSS | PSS | first line after |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for image in sys.argv[1:]:
        root = Path(_podman("image", "mount", image))
        try:
            print(_row(image, root, json.loads(_podman("image", "inspect", image))[0]["Config"]))
        finally:
            _podman("image", "unmount", image)


def _row(image: str, root: Path, config: dict[str, list[str]]) -> str:
    files = sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, "root")
        shutil.copytree(root, copy, symlinks=True)
        (copy / "dev").mkdir(exist_ok=True)  # which every engine gives
        os.mknod(copy / "dev/null", stat.S_IFCHR, os.makedev(1, 3))
        (copy / "dev/null").chmod(0o666)
        Path(directory).chmod(0o755)
        read_from_disk(copy)
        starts = [_start(copy, config["Entrypoint"], config.get("Env", [])) for _ in range(STARTS)]
    took, resident, proportional = (statistics.median(values) for values in zip(*starts, strict=True))
    return (
        f"| {image} | {files / 1e6:.1f} MB | {_compressed(root) / 1e6:.1f} MB "
        f"| {resident:,.0f} KiB | {proportional:,.0f} KiB | {took:.0f} ms |"
    )


def read_from_disk(root: Path) -> None:
    """Take the files below ``root`` out of the page cache, so that the next process to map them reads them again.

    RSS has in it what the kernel maps of a file around each page that is used. Since Linux 6.18 that is the whole piece
    in which the cache holds the file (mm/filemap.c, filemap_map_pages), and right after a file was written the pieces
    are large: up to 3 MB that nobody asked for.
    """
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)  # what is not on the disk yet stays
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _compressed(root: Path) -> int:
    """Return the octets of a layer with these files, compressed as registries have it."""
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            tar.add(root, arcname="")
        file.seek(0)
        return len(gzip.compress(file.read(), 6))


def _start(root: Path, command: list[str], variables: list[str]) -> Start:
    begin = time.perf_counter()
    process = subprocess.Popen(
        ["chroot", "--userspec=65532:65532", root, *command],
        env=dict(variable.split("=", 1) for variable in variables) | {"PATH": os.environ["PATH"]},
        stderr=subprocess.DEVNULL,
    )
    try:
        while not _answers():
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)}: ended with status {process.returncode}")
            time.sleep(0.0005)
        took = (time.perf_counter() - begin) * 1000
        memory = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        resident, proportional = (
            int(re.findall(rf"^{name}: +(\d+)", memory, re.MULTILINE)[0]) for name in ("Rss", "Pss")
        )
        return Start(took, resident, proportional)
    finally:
        process.terminate()
        process.wait()


def _answers() -> bool:
    try:
        with socket.create_connection(ADDRESS, timeout=5) as client:
            return client.recv(len(LINE)) == LINE
    except OSError:
        return False


def _podman(*arguments: str) -> str:
    return subprocess.run(["podman", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


if __name__ == "__main__":
    main()
