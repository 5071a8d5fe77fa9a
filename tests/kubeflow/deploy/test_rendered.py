"""What the overlays render to is up to date, and an API server would take it."""

import copy
import shutil
from typing import Any

import pytest
import yaml
from kubernetes_validate.utils import ValidationError, all_versions, validate

from tests.kubeflow.deploy.rendered import OVERLAYS, objects, path_of, the
from tools.render_deploy import header, render

# The oldest that knows all fields we use without a feature gate, and all that came after.
VERSIONS = sorted({version for version in all_versions() if int(version.split(".")[1]) >= 31})


def test_there_is_an_overlay_for_each_kind_of_node():
    assert OVERLAYS == ("cpu", "gpu", "kueue", "spot")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_rendered_file_was_made_of_what_deploy_holds(overlay):
    first_line = path_of(overlay).read_text().split("\n")[0] + "\n"
    assert first_line == header(), "deploy/ was changed: python -m tools.render_deploy"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl to render with")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_renders_the_same_and_warns_of_nothing(overlay, capfd):
    assert list(yaml.safe_load_all(render(overlay))) == objects(overlay)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_one_of_kubernetes(version):
    for overlay in OVERLAYS:
        for manifest in objects(overlay):
            validate(manifest, version, strict=True)


def test_more_than_one_version_is_asked():
    assert len(VERSIONS) >= 5


def changed(manifest: Any, path: tuple[Any, ...], value: Any) -> Any:
    manifest = copy.deepcopy(manifest)
    *steps, last = path
    holder = manifest
    for step in steps:
        holder = holder[step]
    holder[last] = value
    return manifest


POD = ("spec", "template", "spec")


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Job", ("spec", "backoffLimitPerindex"), 3),
        ("Job", ("spec", "parallelism"), "4"),
        ("Job", (*POD, "containers", 0, "image_pull_policy"), "Always"),
        ("Job", (*POD, "containers", 0, "securityContext", "capabilities", "drop"), "ALL"),
        ("Job", ("spec", "podFailurePolicy", "rules", 0, "onExitCodes", "values"), ["2"]),
        ("PodDisruptionBudget", ("spec", "minavailable"), 1),
        ("NetworkPolicy", ("spec", "egress", 0, "ports", 0, "protocols"), ["UDP"]),
        ("ConfigMap", ("data", "spec.json"), {}),
        ("ServiceAccount", ("automountServiceAccountToken",), "false"),
    ],
)
def test_a_misspelt_field_or_a_wrong_type_is_refused(kind, path, value):
    with pytest.raises(ValidationError):
        validate(changed(the("gpu", kind), path, value), VERSIONS[-1], strict=True)
