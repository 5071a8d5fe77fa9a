"""What Airflow's operators make, against the schemas that .venv-airflow does not have.

tests/airflow/kubernetes compares the operators with these files.
"""

import json
from pathlib import Path

import pytest
import yaml
from kubernetes_validate.utils import validate

GOLDEN = sorted((Path(__file__).parents[2] / "airflow/golden").glob("*.yaml"))


def test_there_are_manifests_of_pods_and_of_jobs():
    assert {path.stem.split("_")[0] for path in GOLDEN} == {"pod", "job"}


@pytest.mark.parametrize("version", ["1.31", "1.37"])
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_an_operators_manifest_is_one_of_kubernetes(path, version):
    manifest = yaml.safe_load(path.read_text())
    pod = manifest if manifest["kind"] == "Pod" else manifest["spec"]["template"]
    annotations = pod["metadata"]["annotations"]
    annotations["vlmflow/spec"] = json.dumps(annotations["vlmflow/spec"])  # shown as an object
    validate(manifest, version, strict=True)
