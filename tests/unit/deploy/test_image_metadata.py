"""Licences in the image's bill of materials: what Debian's copyright files say, as SPDX identifiers."""

import json

import pytest
from cyclonedx.spdx import is_supported_id
from hypothesis import given
from hypothesis import strategies as st
from metadata import bill_of_materials, component, debian_licences

FORMAT = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"


def licences(*names: str) -> list[object]:
    text = FORMAT + "".join(f"\nFiles: {number}\nLicense: {name}\n The text.\n" for number, name in enumerate(names))
    return [choice["license"] for choice in debian_licences(text, "otherwise")]


@pytest.mark.parametrize(
    ("name", "identifier"),
    [
        ("Expat", "MIT"),
        ("MIT", "MIT"),
        ("Zlib", "Zlib"),
        ("BSD-3-clause", "BSD-3-Clause"),
        ("Apache-2.0", "Apache-2.0"),
        ("expat", "MIT"),
        ("BSD-3-Clause", "BSD-3-Clause"),
    ],
)
def test_a_name_that_stands_for_one_licence_becomes_its_identifier(name: str, identifier: str) -> None:
    """Debian's short names with exactly one meaning have an SPDX identifier that exists."""
    assert licences(name) == [{"id": identifier}]
    assert is_supported_id(identifier)


@pytest.mark.parametrize("name", ["public-domain", "Artistic or GPL-1+", "GPL-2+ with OpenSSL exception", "BSD-like"])
def test_any_other_name_refers_to_the_file(name: str) -> None:
    """Alternatives, exceptions and names with several meanings are not interpreted, and do not leave half of a list."""
    assert licences(name) == licences("MIT", name) == [{"name": "otherwise"}]


def test_each_licence_is_listed_once() -> None:
    """Many files of a package have the same licence."""
    assert licences("Zlib", "MIT", "Zlib", "Expat") == [{"id": "MIT"}, {"id": "Zlib"}]


@pytest.mark.parametrize("text", ["", FORMAT, "License: MIT\n", "This package was debianized by\nLicense: Expat\n"])
def test_a_file_without_the_machine_readable_format_is_referred_to(text: str) -> None:
    """Free text is not interpreted, even if a line in it begins like a field."""
    assert debian_licences(text, "see /usr/share/doc/p/copyright") == [
        {"license": {"name": "see /usr/share/doc/p/copyright"}}
    ]


@given(st.text())
def test_any_text_has_a_licence(text: str) -> None:
    """Invariant: the result is never empty, and each entry has either an identifier that exists or a name."""
    for content in text, FORMAT + text, f"{FORMAT}License: {text}":
        found = debian_licences(content, "otherwise")
        assert found
        for choice in found:
            licence = choice["license"]
            assert isinstance(licence, dict)
            assert licence.get("name") or is_supported_id(licence["id"])


def test_equal_images_have_equal_bills_of_materials() -> None:
    """The document contains no time, and its serial number depends on the components."""
    product = component("program", "1", "pkg:pypi/program@1", [{"expression": "MIT"}])
    part = component("part", "2", "pkg:pypi/part@2", [{"license": {"name": "see the text"}}])
    document = bill_of_materials("program", [part, product])
    assert document == bill_of_materials("program", [part, product])
    assert json.loads(document)["dependencies"] == [{"ref": product["purl"], "dependsOn": [part["purl"]]}]
    other = bill_of_materials("program", [part | {"version": "3"}, product])
    assert json.loads(other)["serialNumber"] != json.loads(document)["serialNumber"]
