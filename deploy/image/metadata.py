"""The packages that an image's files come from: their metadata where scanners look for it, and a bill of materials."""

import email
import filecmp
import json
import platform
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

__all__ = ["Component", "add_debian_packages", "add_distributions", "bill_of_materials", "debian_licences"]

_DPKG = Path("/var/lib/dpkg/info")

#: SPDX identifiers of licences that Debian's copyright files or PyPI's classifiers name in another way.
_SPDX = {
    "Apache Software License": "Apache-2.0",
    "BSD-2-clause": "BSD-2-Clause",
    "BSD-3-clause": "BSD-3-Clause",
    "Expat": "MIT",
    "MIT License": "MIT",
    "zlib": "Zlib",
    **{name: name for name in ("Apache-2.0", "ISC", "MIT", "Zlib")},
}


class Component(NamedTuple):
    """A package that part of the image comes from.

    ``purl`` is its package URL, ``licences`` is the array "licenses" of a CycloneDX component.
    """

    name: str
    version: str
    purl: str
    licences: list[dict[str, object]]


def bill_of_materials(product: str, components: Iterable[Component]) -> str:
    """Return a CycloneDX 1.6 document (https://cyclonedx.org/docs/1.6/json/) for the component with this name.

    It contains no time, and the serial number is derived from the content: equal images have equal documents.
    """
    entries = {
        name: {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl, "licenses": licences}
        for name, version, purl, licences in components
    }
    main = entries.pop(product) | {"type": "application"}
    parts = list(entries.values())
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([main, *parts]))}",
        "version": 1,
        "metadata": {"component": main},
        "components": parts,
        "dependencies": [{"ref": main["bom-ref"], "dependsOn": [part["bom-ref"] for part in parts]}],
    }
    return json.dumps(document, indent=1) + "\n"


def add_debian_packages(root: Path) -> Iterator[Component]:
    """Add status, checksums and copyright of the packages that files below ``root`` are from; yield the packages.

    As in the Distroless images, each package has a file in /var/lib/dpkg/status.d, which scanners read.
    """
    directory = root / "var/lib/dpkg/status.d"
    directory.mkdir(parents=True)
    release = platform.freedesktop_os_release()["VERSION_ID"]
    for listing in sorted(_DPKG.glob("*.list")):
        paths = [root / path.lstrip("/") for path in listing.read_text().splitlines()]
        if not any(_is_file(path) or (path.suffix == ".py" and _is_file(path.with_suffix(".pyc"))) for path in paths):
            continue
        show = ["dpkg-query", "--status", listing.stem]
        status = subprocess.run(show, capture_output=True, text=True, check=True).stdout
        fields = email.message_from_string(status)
        name, version, architecture = (str(fields[field]) for field in ("Package", "Version", "Architecture"))
        (directory / name).write_text(status)
        sums = listing.with_suffix(".md5sums").read_text().splitlines(keepends=True)
        present = (line for line in sums if _is_file(root / line.split(maxsplit=1)[1].rstrip()))
        (directory / f"{name}.md5sums").write_text("".join(present))
        copyright_file = Path("/usr/share/doc", name, "copyright")
        _add_copyright(copyright_file, root)
        purl = f"pkg:deb/debian/{name}@{quote(version, safe='')}?arch={architecture}&distro=debian-{release}"
        yield Component(name, version, purl, debian_licences(copyright_file.read_text(), f"see {copyright_file}"))


def _add_copyright(file: Path, root: Path) -> None:
    """Copy a copyright file, or make it a link to one with the same content: those of Python's packages are equal."""
    copy = root / file.relative_to("/")
    copy.parent.mkdir(parents=True)
    equal = (path for path in sorted(copy.parents[1].glob("*/copyright")) if filecmp.cmp(path, file, shallow=False))
    if first := next(equal, None):
        copy.symlink_to(Path("..", first.parent.name, first.name))
    else:
        shutil.copyfile(file, copy)


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def debian_licences(text: str, otherwise: str) -> list[dict[str, object]]:
    """Return the licences that a copyright file names; ``otherwise`` when it does not have the machine-readable format.

    https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
    """
    field = r"^License:[ \t]*(\S.*?)[ \t]*$"
    names = sorted(set(re.findall(field, text, re.MULTILINE))) if text.startswith("Format:") else []
    return [_licence(name) for name in names or [otherwise]]


def _licence(name: str) -> dict[str, object]:
    """Return an SPDX identifier when the name stands for exactly one, or else the name."""
    if family := re.fullmatch(r"(A?GPL|LGPL)-(\d)(?:\.(\d))?(\+?)", name):
        return {"license": {"id": f"{family[1]}-{family[2]}.{family[3] or 0}-{'or-later' if family[4] else 'only'}"}}
    return {"license": {"id": _SPDX[name]} if name in _SPDX else {"name": name}}


def add_distributions(modules: Iterable[Path], site: Path, target: Path) -> Iterator[Component]:
    """Add the metadata and licences of the Python distributions in ``site`` that own these modules; yield them."""
    used = set(modules)
    for distribution in distributions(path=[str(site)]):
        files = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()]
        if used.isdisjoint(files):
            continue
        for file in files:
            if file.name == "METADATA" or file.name.startswith("LICENSE") or "licenses" in file.parts:
                copy = target / file.relative_to(site)
                copy.parent.mkdir(parents=True, exist_ok=True)
                text = file.read_text()  # of METADATA the fields without the README that follows
                copy.write_text(text.partition("\n\n")[0] + "\n" if file.name == "METADATA" else text)
        name, version = distribution.metadata["Name"], distribution.version
        purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
        yield Component(name, version, purl, _distribution_licences(distribution))


def _distribution_licences(distribution: Distribution) -> list[dict[str, object]]:
    """Return the licence expression (PEP 639), or what older metadata has: classifiers, or a text in a field."""
    fields = distribution.metadata
    if fields["License-Expression"]:
        return [{"expression": fields["License-Expression"]}]
    classified = re.findall(r"^License ::.* :: (.+)$", "\n".join(fields.get_all("Classifier", ())), re.MULTILINE)
    return [_licence(name) for name in sorted(classified) or [fields["License"] or "unknown"]]
