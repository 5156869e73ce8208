"""The bill of materials of an image: CycloneDX 1.6, https://cyclonedx.org/docs/1.6/json/."""

import json
import uuid
from collections.abc import Sequence
from typing import Any

from packages import Component

__all__ = ["bill_of_materials"]


def bill_of_materials(product: Component, parts: Sequence[Component]) -> str:
    """Return the JSON document for ``product``, made of ``parts``.

    It has no time in it, and its serial number follows from its content: the same image, the same document.
    """
    components = [_component(part, "library") for part in parts]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([product, *parts]))}",
        "version": 1,
        "metadata": {"component": _component(product, "application")},
        "components": components,
        "dependencies": [{"ref": product.purl, "dependsOn": [part.purl for part in parts]}],
    }
    return json.dumps(document, indent=1) + "\n"


def _component(one: Component, kind: str) -> dict[str, Any]:
    licences = {"licenses": [{"expression": one.licence}]} if one.licence else {}
    return {"type": kind, "bom-ref": one.purl, "name": one.name, "version": one.version, "purl": one.purl} | licences
