"""The manifests that the operators make, as files that people can read.

A change of the operators or of the provider shows here. When it is wanted:
`VLMFLOW_WRITE_GOLDEN=1 pytest tests/airflow/kubernetes/test_manifests.py`, and look at the diff.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.providers.cncf.kubernetes.secret import Secret
from kubernetes.client import ApiClient
from kubernetes.client import models as k8s

from tests.airflow.kubernetes.kit import Kit, Task
from tests.airflow.kubernetes_api.schema import faults
from vlmflow.airflow.operators.kubernetes_job import VLMBatchInferenceJobOperator
from vlmflow.airflow.operators.pod import VLMBatchInferencePodOperator

GOLDEN = Path(__file__).parents[1] / "golden"
WRITES = bool(os.environ.get("VLMFLOW_WRITE_GOLDEN"))
JOB = {
    "manifest": "s3://data/shapes/manifest.jsonl",
    "model": "s3://models/internvl3-1b",
    "output": "s3://data/results",
    "generation": {"max_new_tokens": 64},
}
COMMON = {
    "task_id": "infer",
    "image": "registry.example.org/vlmflow:0.1.0",
    "namespace": "vision",
    "random_name_suffix": False,
    **JOB,
}
SECRETS = [
    Secret("env", "AWS_ACCESS_KEY_ID", "s3", "access_key"),
    Secret("env", "AWS_SECRET_ACCESS_KEY", "s3", "secret_key"),
]
CASES = {
    "pod_cpu": (VLMBatchInferencePodOperator, {}),
    "pod_gpu": (
        VLMBatchInferencePodOperator,
        {
            "gpus": 1,
            "shard": "2/8",
            "secrets": SECRETS,
            "service_account_name": "vlmflow",
            "env_vars": {"HF_HOME": "/tmp/hub"},
            "container_resources": k8s.V1ResourceRequirements(
                requests={"cpu": "4", "memory": "32Gi"}, limits={"memory": "64Gi"}
            ),
            "limits": {"grace_seconds": 60},
        },
    ),
    "job_gpu_queue": (
        VLMBatchInferenceJobOperator,
        {
            "gpus": 1,
            "workers": 4,
            "num_shards": 16,
            "queue_name": "gpus",
            "backoff_limit": 3,
            "env_from": [k8s.V1EnvFromSource(secret_ref=k8s.V1SecretEnvSource(name="s3"))],
        },
    ),
}


def manifest_of(operator_class: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """What the API server gets, in its own JSON."""
    task = Task(lambda: operator_class(**COMMON, **arguments), try_number=1)
    operator, context = task.make(), task.context()
    if operator_class is VLMBatchInferencePodOperator:
        built = operator.build_pod_request_obj(context)
    else:
        built = operator.build_job_request_obj(context)
    return ApiClient().sanitize_for_serialization(built)


@pytest.mark.parametrize("name", CASES)
def test_a_manifest_is_what_its_golden_file_says_and_a_strict_server_takes_it(kit: Kit, name):
    manifest = manifest_of(*CASES[name])
    assert faults(manifest) == []
    shown = readable(manifest)
    path = GOLDEN / f"{name}.yaml"
    if WRITES:
        path.write_text(yaml.safe_dump(shown, sort_keys=True, width=100))
    assert shown == yaml.safe_load(path.read_text())


@pytest.mark.parametrize("name", CASES)
def test_a_golden_file_is_a_manifest_that_a_strict_server_takes(name):
    """Also without us: with the spec put back as text."""
    manifest = yaml.safe_load((GOLDEN / f"{name}.yaml").read_text())
    pod = manifest if manifest["kind"] == "Pod" else manifest["spec"]["template"]
    annotations = pod["metadata"]["annotations"]
    annotations["vlmflow/spec"] = json.dumps(annotations["vlmflow/spec"])
    assert faults(manifest) == []


def readable(manifest: dict[str, Any]) -> dict[str, Any]:
    """With the spec as an object, less its defaults, and without Airflow's version."""
    pod = manifest if manifest["kind"] == "Pod" else manifest["spec"]["template"]
    pod["metadata"]["labels"]["airflow_version"] = "AIRFLOW"
    spec = json.loads(pod["metadata"]["annotations"]["vlmflow/spec"])
    shown = {key: spec[key] for key in ("name", "num_shards", *JOB, "limits")}
    shown["generation"] = {"max_new_tokens": spec["generation"]["max_new_tokens"]}
    shown["limits"] = {"grace_seconds": spec["limits"]["grace_seconds"]}
    pod["metadata"]["annotations"]["vlmflow/spec"] = shown
    return manifest
