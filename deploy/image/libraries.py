"""Which shared libraries programs need: those that the linker names, and those that a library opens by name later."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

__all__ = ["UNOPENED", "copy_in", "needed_libraries"]

#: Libraries that one of ours could open by name, and does not.
UNOPENED = {
    "libidn2.so.0": "getaddrinfo() with AI_IDN, a flag that Python does not pass: it encodes names by itself",
    "libnss_files.so.2": "what looks names up in files has been in the C library itself since 2.34",
}


def needed_libraries(programs: Iterable[Path], unopened: Container[str] = UNOPENED) -> set[Path]:
    """Return the paths, as the linker finds them, of all shared libraries that these programs and libraries need.

    Not those that could only be opened by a name in ``unopened``.
    """
    installed = dict(_installed())
    needed: set[Path] = set()
    todo = set(programs)
    while todo:
        one = todo.pop()
        opened = {installed[name] for name in _names_in(one) if name in installed and name not in unopened}
        new = {*_linked(one), *opened} - needed
        needed |= new
        todo |= new
    return needed


def copy_in(source: Path, root: Path) -> Path:
    """Copy a file to the same path below ``root``, and a link to its name where it is a link; return the copy."""
    directory = source.parent.resolve()  # as on any Debian /lib is a link to /usr/lib, so each file has one place
    copy = root / source.resolve().relative_to("/")
    link = root / directory.relative_to("/") / source.name
    for path in copy, link:
        path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, copy)
    if link != copy and not link.is_symlink():
        link.symlink_to(Path(os.path.relpath(copy, link.parent)))
    top = root / source.parts[1]
    if directory != source.parent and not top.is_symlink():
        top.symlink_to(Path("/", source.parts[1]).resolve().relative_to("/"))
    return copy


def _linked(path: Path) -> Iterator[Path]:
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    if "not found" in listed:
        raise SystemExit(f"{path} lacks a library:\n{listed}")
    yield from (Path(found) for found in re.findall(r"(/\S+) \(0x", listed))


def _names_in(path: Path) -> Iterator[str]:
    for name in re.findall(rb"(?<=\0)lib[\w+-]+\.so\.[\d.]+(?=\0)", path.read_bytes()):
        yield name.decode()


def _installed() -> Iterator[tuple[str, Path]]:
    """Yield what the linker's cache has: names and paths, those of this machine's own architecture."""
    listed = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    for name, path in re.findall(r"^\s+(\S+) .* => (\S+)$", listed, re.MULTILINE):
        yield name, Path(path)


if __name__ == "__main__":
    root_path, *files = map(Path, sys.argv[1:])
    for file in {*files, *needed_libraries(files)}:
        copy_in(file, root_path)
