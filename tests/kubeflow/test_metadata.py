"""metadata.yaml has the fields that kubeflow/pipelines-components asks for, in its order."""

import re
from datetime import datetime

import jsonschema
import pytest
import yaml

from tools.kubeflow_files import COMPONENTS, NAMES

_VERSION = r"^(==|>=|<=|~=)?(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$"
_DEPENDENCIES = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name", "version"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string"},
            "version": {"type": "string", "pattern": _VERSION},
        },
    },
}
SCHEMA = {
    "type": "object",
    "required": ["name", "stability", "dependencies", "lastVerified"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "stability": {"enum": ["alpha", "beta", "stable"]},
        "dependencies": {
            "type": "object",
            "required": ["kubeflow"],
            "additionalProperties": False,
            "properties": {
                "kubeflow": {
                    **_DEPENDENCIES,
                    "contains": {"properties": {"name": {"const": "Pipelines"}}},
                },
                "external_services": _DEPENDENCIES,
            },
        },
        "lastVerified": {},
        "tags": {"type": "array", "items": {"type": "string"}},
        "ci": {"type": "object"},
        "links": {"type": "object"},
    },
}


@pytest.mark.parametrize("name", NAMES)
def test_metadata(name):
    text = (COMPONENTS / name / "metadata.yaml").read_text()
    metadata = yaml.safe_load(text)
    jsonschema.validate(metadata, SCHEMA)
    assert metadata["name"] == name
    assert isinstance(metadata["lastVerified"], datetime)
    assert list(metadata) == [key for key in SCHEMA["properties"] if key in metadata]
    assert re.search(r"lastVerified: \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\n", text)


def test_every_component_has_its_files():
    folders = {path.parent.name for path in COMPONENTS.glob("*/component.py")}
    assert folders == set(NAMES)
    for name in NAMES:
        there = {path.name for path in (COMPONENTS / name).iterdir() if path.is_file()}
        assert there == {"__init__.py", "component.py", "metadata.yaml", "README.md"}
