"""What an image takes: disk space, download size, memory, and time until it answers. Needs root and podman.

    measure.py IMAGE...        print a table of these images
    measure.py [--OPTION...]   build the images of README.md, with these options of podman build, and write its table

Each image's own command runs on a copy of its files, as user 65532 on port 2525, and is timed from its start to the
first client that has received the whole line. Figures are medians of 21 starts; 1 MB is 10^6 octets.
"""

import json
import os
import re
import shutil
import socket
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["drop_page_cache"]

STARTS = 21
LINE = b"521 Host does not accept mail\r\n"
ADDRESS = ("127.0.0.1", 2525)
DIRECTORY = Path(__file__).resolve().parent

HEADER = """\
| image | files, MB | compressed, MB | RSS, KiB | anonymous, KiB | first line after, ms |
| --- | ---: | ---: | ---: | ---: | ---: |
"""

#: The rows of README.md: what is built, with what options.
ROWS = {
    "nullsmtpd": (),
    "nullsmtpd with EXTRAS=relay": ("--build-arg=EXTRAS=relay",),
    "nginx with its stream module": (f"--file={DIRECTORY / 'nginx.Dockerfile'}",),
}


def main(arguments: Sequence[str]) -> None:
    """Print the table, or write it into README.md."""
    if arguments and not arguments[0].startswith("--"):
        print(HEADER + "".join(_row(image, image) for image in arguments), end="")
        return
    build = ("build", "--quiet", "--format=docker", "--network=host", *arguments)
    rows = [_row(name, _podman(*build, *options, str(DIRECTORY.parents[1]))) for name, options in ROWS.items()]
    readme = DIRECTORY / "README.md"
    before, after = re.split(rf"{re.escape(HEADER)}(?:\|.*\n)*", readme.read_text())
    readme.write_text(before + HEADER + "".join(rows) + after)


def _row(name: str, image: str) -> str:
    config = json.loads(_podman("image", "inspect", image))[0]["Config"]
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        root = Path(directory, "root")
        shutil.copytree(_podman("image", "mount", image), root, symlinks=True)
        _podman("image", "unmount", image)
        size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())
        layer = subprocess.run(["tar", "-cz", "-C", root, "."], check=True, stdout=subprocess.PIPE).stdout
        (root / "dev").mkdir(exist_ok=True)
        os.mknod(root / "dev/null", stat.S_IFCHR, os.makedev(1, 3))  # which every engine provides
        (root / "dev/null").chmod(0o666)
        drop_page_cache(root)
        starts = [_start(root, config["Entrypoint"], config.get("Env", [])) for _ in range(STARTS)]
    elapsed, resident, anonymous = (statistics.median(values) for values in zip(*starts, strict=True))
    return (
        f"| {name} | {size / 1e6:.1f} | {len(layer) / 1e6:.1f} | {resident:,.0f} | {anonymous:,.0f} | {elapsed:.0f} |\n"
    )


def drop_page_cache(root: Path) -> None:
    """Remove the files below ``root`` from the page cache, so that they are read from disk as after a boot.

    RSS includes the pages that the kernel maps around each page of a file that is used. Since Linux 6.18 these are all
    pages of a large folio of the page cache (mm/filemap.c, filemap_map_pages), and files just written have the largest
    folios: RSS was up to 3 MB higher.
    """
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)  # pages not written to disk yet would stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _start(root: Path, command: Sequence[str], variables: Sequence[str]) -> tuple[float, int, int]:
    """Return the milliseconds from the start to the line, then KiB of memory: resident, and anonymous."""
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


def _podman(*arguments: str) -> str:
    return subprocess.run(["podman", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


if __name__ == "__main__":
    main(sys.argv[1:])
