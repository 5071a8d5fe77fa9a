"""docs/kubernetes.md: what it tells the reader to write renders, and does what it says."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate.utils import validate

from tools.render_deploy import DEPLOY, ROOT

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="there is no kubectl to render with"
)
PAGE = (ROOT / "docs/kubernetes.md").read_text()
OVERLAY, PATCH = (part.split("\n```")[0] for part in PAGE.split("```yaml\n")[1:])
SPEC = '{"a":"spec of ours"}\n'


@pytest.fixture
def render(tmp_path: Path) -> Any:
    """Renders an overlay that a reader has made."""

    def render_overlay(kustomization: str) -> dict[str, Any]:
        shutil.copytree(DEPLOY, tmp_path / "deploy")
        folder = tmp_path / "deploy/overlays/receipts"
        folder.mkdir()
        (folder / "spec.json").write_text(SPEC)
        (folder / "kustomization.yaml").write_text(kustomization)
        command = ["kubectl", "kustomize", str(folder)]
        text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = list(yaml.safe_load_all(text))
        for manifest in found:
            validate(manifest, "1.37", strict=True)
        return {manifest["kind"]: manifest for manifest in found}

    return render_overlay


def test_an_overlay_of_ones_own_is_another_job_with_another_spec(render):
    found = render(OVERLAY)
    config, job, policy = found["ConfigMap"], found["Job"], found["NetworkPolicy"]
    assert config["data"] == {"spec.json": SPEC} and config["immutable"] is True
    assert {item["metadata"]["namespace"] for item in found.values()} == {"vision"}
    assert job["metadata"]["name"] == "receipts-vlmflow"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 8
    pod = job["spec"]["template"]
    assert pod["metadata"]["labels"]["app.kubernetes.io/instance"] == "receipts"
    assert pod["spec"]["volumes"][0]["configMap"]["name"] == config["metadata"]["name"]
    assert pod["spec"]["serviceAccountName"] == found["ServiceAccount"]["metadata"]["name"]
    (container,) = pod["spec"]["containers"]
    assert container["image"] == "registry.example.org/vlmflow:0.1.0"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    store = policy["spec"]["egress"][-1]
    assert store["ports"] == [{"protocol": "TCP", "port": 9000}]


def test_all_components_go_together(render):
    more = "- ../../components/spot\n- ../../components/kueue\n"
    job = render(OVERLAY.replace("components/gpu\n", f"components/gpu\n{more}"))["Job"]
    assert job["spec"]["suspend"] is True
    pod = job["spec"]["template"]["spec"]
    assert len(pod["tolerations"]) == 3 and pod["affinity"] and pod["nodeSelector"]


def test_a_pod_for_each_shard_is_a_patch(render):
    job = render(f"resources:\n- ../../base\n{PATCH}")["Job"]["spec"]
    assert (job["completions"], job["parallelism"]) == (32, 4)
    assert "successPolicy" not in job
    (container,) = job["template"]["spec"]["containers"]
    assert container["args"] == [
        "run",
        "--spec",
        "/etc/vlmflow/spec.json",
        "--shard",
        "$(JOB_COMPLETION_INDEX)/32",
    ]
