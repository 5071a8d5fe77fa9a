"""A bill of materials of an image, made from what is installed in it, as CycloneDX JSON.

    docker run --rm -i --entrypoint python IMAGE -I - < tools/sbom.py > sbom.cdx.json

It runs inside the image, on the standard library and the image's own `packaging`. Named are
Python, its distributions with their licences and who needs whom, the libraries that wheels say
they carry, and Debian's packages. The same image gives the same bytes.
"""

import json
import platform
import re
import sys
import uuid
from collections.abc import Iterator
from email.message import Message
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

from packaging.requirements import Requirement

_DPKG_STATUS = Path("/var/lib/dpkg/status")
_PART = ("type", "name", "version", "purl", "licenses")  # what is kept of a library in a wheel
_NAMESPACE = uuid.UUID("6f0f7b1e-5d0f-4c62-9d53-6a7c5a0f3c11")  # of our serial numbers


def main() -> None:
    json.dump(bill(list(distributions()), _DPKG_STATUS), sys.stdout, indent=1)
    print()


def bill(found: list[Distribution], dpkg_status: Path) -> dict[str, Any]:
    """Return the document. A system without dpkg has no packages of it."""
    by_name = {canonical(each.metadata["Name"]): each for each in found}
    python = [_python_component(by_name[name]) for name in sorted(by_name)]
    debian = sorted(_debian_components(dpkg_status), key=lambda each: str(each["bom-ref"]))
    content = {
        "components": [_interpreter(), *python, *debian],
        "dependencies": [
            {"ref": purl(each), "dependsOn": sorted(needs(each, by_name))}
            for _, each in sorted(by_name.items())
        ],
    }
    ours = by_name.get("vlmflow")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, json.dumps(content))}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "name": "vlmflow",
                "version": ours.version if ours else "",
                "bom-ref": "image",
            }
        },
        **content,
    }


def canonical(name: str) -> str:
    """Write a distribution's name as the index does."""
    return re.sub(r"[-_.]+", "-", name).lower()


def purl(distribution: Distribution) -> str:
    return f"pkg:pypi/{canonical(distribution.metadata['Name'])}@{quote(distribution.version)}"


def needs(distribution: Distribution, by_name: dict[str, Distribution]) -> Iterator[str]:
    """Yield what it asks for without extras, as far as it is there."""
    for line in distribution.requires or ():
        requirement = Requirement(line)
        name = canonical(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and name in by_name:
            yield purl(by_name[name])


def _interpreter() -> dict[str, Any]:
    """Python itself, which Docker's images of it do not have from Debian."""
    version = platform.python_version()
    return {
        "type": "application",
        "bom-ref": f"pkg:generic/python@{version}",
        "name": "python",
        "version": version,
        "purl": f"pkg:generic/python@{version}",
        "cpe": f"cpe:2.3:a:python:python:{version}:*:*:*:*:*:*:*",
    }


def _python_component(distribution: Distribution) -> dict[str, Any]:
    metadata = distribution.metadata
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl(distribution),
        "name": metadata["Name"],
        "version": distribution.version,
        "purl": purl(distribution),
    }
    if licence := _licence(metadata):
        component["licenses"] = licence
    if carried := list(_carried(distribution)):
        component["components"] = carried
    return component


def _licence(metadata: Any) -> list[dict[str, Any]]:
    """An SPDX expression where a package gives one, else its words."""
    message: Message = metadata
    if expression := message.get("License-Expression"):
        return [{"expression": expression}]
    classified = [
        value.rpartition(" :: ")[2]
        for value in message.get_all("Classifier", [])
        if value.startswith("License :: ")
    ]
    words = message.get("License") or ""
    names = classified or ([words] if words and "\n" not in words and len(words) < 100 else [])
    return [{"license": {"name": name}} for name in names]


def _carried(distribution: Distribution) -> Iterator[dict[str, Any]]:
    """Yield libraries inside a wheel, each once, as its own bills (PEP 770) name them."""
    itself, seen = purl(distribution), set()
    name, packages = canonical(distribution.metadata["Name"]), distribution.locate_file("")
    ending = f"-{distribution.version}.dist-info"
    for file in sorted(Path(str(packages)).glob(f"*{ending}/sboms/*.json")):
        if canonical(file.parts[-3].removesuffix(ending)) != name:
            continue
        inner = json.loads(file.read_text())
        for each in inner.get("components", ()):  # another format's have another name
            part = {key: each[key] for key in _PART if each.get(key)}
            line = json.dumps(part, sort_keys=True)
            if line not in seen and not part.get("purl", "").startswith(itself):
                seen.add(line)
                yield part


def _debian_components(status: Path) -> Iterator[dict[str, Any]]:
    if not status.is_file():
        return
    for paragraph in status.read_text().split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in paragraph.splitlines() if re.match(r"\S+: ", line)
        )
        if fields.get("Status") != "install ok installed":
            continue
        reference = (
            f"pkg:deb/debian/{quote(fields['Package'])}@{quote(fields['Version'])}"
            f"?arch={fields['Architecture']}"
        )
        yield {
            "type": "library",
            "bom-ref": reference,
            "name": fields["Package"],
            "version": fields["Version"],
            "purl": reference,
        }


if __name__ == "__main__":
    main()
