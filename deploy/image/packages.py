"""Which packages the files of an image come from, and what of their metadata a scanner wants to find beside them."""

import email
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

__all__ = ["Component", "add_debian_packages", "add_distributions"]

_DPKG = Path("/var/lib/dpkg")


class Component(NamedTuple):
    """A package of which something is in the image. ``purl`` is its package URL, ``licence`` an SPDX expression."""

    name: str
    version: str
    purl: str
    licence: str = ""


def add_debian_packages(sources: Iterable[Path], root: Path) -> Iterator[Component]:
    """Write status, checksums and copyright of the packages that own these files below ``root``; yield the packages.

    As the Distroless images have it: a file for each package in /var/lib/dpkg/status.d, which scanners know.
    """
    used = {_unmerged(source.resolve()) for source in sources}
    directory = root / "var/lib/dpkg/status.d"
    directory.mkdir(parents=True)
    for listing in sorted((_DPKG / "info").glob("*.list")):
        if ours := used.intersection(map(_unmerged, map(Path, listing.read_text().splitlines()))):
            show = ["dpkg-query", "--status", listing.stem]
            status = subprocess.run(show, capture_output=True, text=True, check=True).stdout
            component = _debian_component(status)
            (directory / component.name).write_text(status)
            checksums = _checksums(listing.with_suffix(".md5sums"), ours)
            (directory / f"{component.name}.md5sums").write_text("".join(checksums))
            _copy_copyright(component.name, root)
            yield component


def add_distributions(sources: Iterable[Path], site: Path, target: Path) -> Iterator[Component]:
    """Write the metadata and licences of the Python distributions in ``site`` that own these files to ``target``."""
    used = set(sources)
    for distribution in distributions(path=[str(site)]):
        files = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()]
        if used.isdisjoint(files):
            continue
        for file in files:
            inside = file.relative_to(site)
            if file.name == "METADATA" or "licenses" in inside.parts or file.name.startswith("LICENSE"):
                (target / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target / inside)
                if file.name == "METADATA":  # the fields; what follows them is the README
                    (target / inside).write_text(file.read_text().partition("\n\n")[0] + "\n")
        yield _component(distribution)


def _component(distribution: Distribution) -> Component:
    name, version = distribution.metadata["Name"], distribution.version
    licence = distribution.metadata["License-Expression"] or ""
    return Component(name, version, f"pkg:pypi/{name.lower().replace('_', '-')}@{version}", licence)


def _debian_component(status: str) -> Component:
    fields = email.message_from_string(status)
    name, version, architecture = (str(fields[field]) for field in ("Package", "Version", "Architecture"))
    release = platform.freedesktop_os_release()["VERSION_ID"]
    purl = f"pkg:deb/debian/{name}@{quote(version, safe='')}?arch={architecture}&distro=debian-{release}"
    return Component(name, version, purl)


def _unmerged(path: Path) -> Path:
    """Return a path without /usr: package lists say /lib for some files of /usr/lib, which is the same directory."""
    return Path("/", *path.parts[2:]) if path.parts[:2] == ("/", "usr") else path


def _checksums(sums: Path, ours: set[Path]) -> Iterator[str]:
    """Yield the lines for what is in the image as it is in the package, which Python's sources are not."""
    for line in sums.read_text().splitlines(keepends=True) if sums.exists() else ():
        path = _unmerged(Path("/", line.split(maxsplit=1)[1].rstrip("\n")))
        if path in ours and path.suffix != ".py":
            yield line


def _copy_copyright(package: str, root: Path) -> None:
    """Copy a package's copyright file; those that say the same are one file."""
    text = Path("/usr/share/doc", package, "copyright").read_bytes()
    copy = root / "usr/share/doc" / package / "copyright"
    copy.parent.mkdir(parents=True, exist_ok=True)
    for other in copy.parent.parent.glob("*/copyright"):
        if not other.is_symlink() and other.read_bytes() == text:
            copy.symlink_to(Path("..", other.parent.name, "copyright"))
            return
    copy.write_bytes(text)
