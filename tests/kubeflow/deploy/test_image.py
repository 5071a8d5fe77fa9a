"""What the image declares and what the manifests count on."""

import re

import pytest

from tests.kubeflow.deploy.rendered import OVERLAYS, container, pod_template
from tools.render_deploy import ROOT

DOCKERFILE = ROOT / "Dockerfile"
pytestmark = pytest.mark.skipif(not DOCKERFILE.is_file(), reason="there is no Dockerfile here")


def declared(instruction: str) -> list[str]:
    """The arguments of an instruction, each time it is given."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    return re.findall(rf"^{instruction}\s+(.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_place_that_the_image_writes_to_is_a_volume(overlay):
    mounted = {
        mount["mountPath"]
        for mount in container(overlay)["volumeMounts"]
        if not mount.get("readOnly")
    }
    places = set(declared("VOLUME"))
    for line in declared("ENV"):
        places |= set(re.findall(r"(?:HOME|TMPDIR|_DIR)=(/\S+)", line))
        places |= set(re.findall(r"MPLCONFIGDIR=(/\S+)", line))
    assert {"/var/cache/vlmflow", "/tmp"} <= places
    for place in places:
        assert any(f"{place}/".startswith(f"{mount}/") for mount in mounted), place


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_variables_that_are_set_here_too_are_the_same(overlay):
    theirs = dict(re.findall(r"(\w+)=(\S+)", " ".join(declared("ENV"))))
    ours = {item["name"]: item["value"] for item in container(overlay)["env"] if "value" in item}
    assert {name for name in ours if name in theirs} == {"HOME", "XDG_CACHE_HOME"}
    assert all(ours[name] == theirs[name] for name in ("HOME", "XDG_CACHE_HOME"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_user_and_command_are_the_images(overlay):
    user = declared("USER")[-1].split(":")[0]
    assert pod_template(overlay)["spec"]["securityContext"]["runAsUser"] == int(user)
    assert declared("ENTRYPOINT")[-1] == '["vlmflow"]'
