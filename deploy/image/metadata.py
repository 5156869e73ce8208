"""The packages that an image's files come from: their metadata where scanners look for it, and a bill of materials."""

import email
import json
import platform
import re
import subprocess
import uuid
from collections.abc import Iterable, Iterator
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import quote

__all__ = ["add_debian_packages", "add_distributions", "bill_of_materials", "component", "debian_licences", "write"]

#: SPDX identifiers of licences, by their names in Debian's copyright files and PyPI's classifiers, in lower case.
_SPDX = {
    **{name.lower(): name for name in ("Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "Zlib")},
    "apache software license": "Apache-2.0",
    "expat": "MIT",
    "mit license": "MIT",
}


def component(name: str, version: str, purl: str, licences: list[dict[str, object]]) -> dict[str, object]:
    """Return the entry of a package in a bill of materials; ``purl`` is its package URL."""
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl, "licenses": licences}


def bill_of_materials(product: str, components: Iterable[dict[str, object]]) -> str:
    """Return a CycloneDX 1.6 document (https://cyclonedx.org/docs/1.6/json/) for the component with this name.

    It contains no time, and the serial number is derived from the content: equal images have equal documents.
    """
    parts = list(components)
    main = next(part for part in parts if part["name"] == product)
    parts.remove(main)
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([main, *parts])).urn,
        "version": 1,
        "metadata": {"component": main | {"type": "application"}},
        "components": parts,
        "dependencies": [{"ref": main["bom-ref"], "dependsOn": [part["bom-ref"] for part in parts]}],
    }
    return json.dumps(document, indent=1) + "\n"


def add_debian_packages(root: Path) -> Iterator[dict[str, object]]:
    """Add status, checksums and copyright of the packages that files below ``root`` are from; yield the packages.

    As in the Distroless images, each package has a file in /var/lib/dpkg/status.d, which scanners read.
    """
    release = platform.freedesktop_os_release()["VERSION_ID"]
    owners: dict[str, str] = {}  # of copyright texts: those of Python's packages are equal, and only the first is added
    for listing in sorted(Path("/var/lib/dpkg/info").glob("*.list")):
        paths = [root / path.lstrip("/") for path in listing.read_text().splitlines()]
        if not any(_is_file(path) or (path.suffix == ".py" and _is_file(path.with_suffix(".pyc"))) for path in paths):
            continue
        status = subprocess.check_output(["dpkg-query", "--status", listing.stem], text=True)
        fields = email.message_from_string(status)
        name, version, architecture = (str(fields[field]) for field in ("Package", "Version", "Architecture"))
        write(root / "var/lib/dpkg/status.d" / name, status)
        sums = listing.with_suffix(".md5sums").read_text().splitlines(keepends=True)
        present = (line for line in sums if _is_file(root / line.split()[1]))
        write(root / f"var/lib/dpkg/status.d/{name}.md5sums", "".join(present))
        copyright_file = Path("/usr/share/doc", name, "copyright")
        text = copyright_file.read_text()
        if (owner := owners.setdefault(text, name)) == name:
            write(root / copyright_file.relative_to("/"), text)
        else:
            (root / "usr/share/doc" / name).symlink_to(owner)
        purl = f"pkg:deb/debian/{name}@{quote(version, safe='')}?arch={architecture}&distro=debian-{release}"
        yield component(name, version, purl, debian_licences(text, f"see {copyright_file}"))


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def write(path: Path, text: str) -> None:
    """Write a file, and make the directories that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def debian_licences(text: str, otherwise: str) -> list[dict[str, object]]:
    """Return the licences that a copyright file names, if it has the machine-readable format.

    https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
    """
    names = re.findall(r"^License:[ \t]*(\S.*?)[ \t]*$", text, re.MULTILINE) if text.startswith("Format:") else []
    return _licences(names, otherwise)


def _licences(names: Iterable[str], otherwise: str) -> list[dict[str, object]]:
    """Return the SPDX identifiers of licences, each once; ``otherwise`` unless each name stands for exactly one."""
    found = {_SPDX.get(name.lower(), "") for name in names}
    if not found or "" in found:
        return [{"license": {"name": otherwise}}]
    return [{"license": {"id": identifier}} for identifier in sorted(found)]


def add_distributions(modules: set[Path], site: Path, target: Path) -> Iterator[dict[str, object]]:
    """Add the metadata and licences of the Python distributions in ``site`` that own these modules; yield them."""
    for distribution in distributions(path=[str(site)]):
        files = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()]
        if modules.isdisjoint(files):
            continue
        for file in files:
            if file.name == "METADATA":  # its fields, without the README that follows
                write(target / file.relative_to(site), file.read_text().partition("\n\n")[0] + "\n")
            elif "licenses" in file.parts:  # PEP 639
                write(target / file.relative_to(site), file.read_text())
        name, version = distribution.metadata["Name"], distribution.version
        purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
        if expression := distribution.metadata["License-Expression"]:  # PEP 639
            yield component(name, version, purl, [{"expression": expression}])
        else:
            classifiers = distribution.metadata.get_all("Classifier", ())
            names = [one.rpartition(" :: ")[2] for one in classifiers if one.startswith("License ::")]
            yield component(name, version, purl, _licences(names, f"see the metadata of {name}"))
