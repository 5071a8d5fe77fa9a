"""The rendered manifests of each overlay, and how to find one's way in them."""

import copy
from pathlib import Path
from typing import Any

import yaml

from tools.render_deploy import GOLDEN, OVERLAYS

Manifest = dict[str, Any]
_READ: dict[str, list[Manifest]] = {}


def path_of(overlay: str) -> Path:
    return GOLDEN / f"{overlay}.yaml"


def objects(overlay: str) -> list[Manifest]:
    """All objects of an overlay, to be changed at will."""
    if overlay not in _READ:
        _READ[overlay] = list(yaml.safe_load_all(path_of(overlay).read_text()))
    return copy.deepcopy(_READ[overlay])


def the(overlay: str, kind: str) -> Manifest:
    """The only object of a kind."""
    (found,) = [manifest for manifest in objects(overlay) if manifest["kind"] == kind]
    return found


def pod_template(overlay: str) -> Manifest:
    template: Manifest = the(overlay, "Job")["spec"]["template"]
    return template


def container(overlay: str) -> Manifest:
    (found,) = pod_template(overlay)["spec"]["containers"]
    return dict(found)


def spec_text(overlay: str) -> str:
    """The JobSpec, as the workers read it."""
    return str(the(overlay, "ConfigMap")["data"]["spec.json"])


__all__ = ["OVERLAYS", "container", "objects", "path_of", "pod_template", "spec_text", "the"]
