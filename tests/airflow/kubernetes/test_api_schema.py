"""The strict validator refuses what an API server refuses: else it would prove nothing."""

import copy

import pytest
import yaml

from tests.airflow.kubernetes_api.schema import faults
from tools.render_deploy import GOLDEN, OVERLAYS

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "a", "labels": {"team": "vision"}, "annotations": {"vlmflow/spec": "{}"}},
    "spec": {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 55,
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}],
        "containers": [
            {
                "name": "base",
                "image": "i",
                "env": [{"name": "A", "value": "1"}],
                "resources": {"limits": {"nvidia.com/gpu": "1"}},
                "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
            }
        ],
    },
}
JOB = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "job-a"},
    "spec": {
        "suspend": True,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2, 3]}},
                {
                    "action": "Ignore",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
            ]
        },
        "template": {"spec": POD["spec"]},
    },
}


def changed(manifest, path, value):
    manifest = copy.deepcopy(manifest)
    *steps, last = path
    holder = manifest
    for step in steps:
        holder = holder[step]
    if value is None:
        del holder[last]
    else:
        holder[last] = value
    return manifest


@pytest.mark.parametrize("manifest", [POD, JOB], ids=["pod", "job"])
def test_a_good_manifest_has_no_fault(manifest):
    assert faults(manifest) == []


CONTAINER = ("spec", "containers", 0)


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (("spec", "node_selector"), {}, "Pod.spec.node_selector: unknown field of V1PodSpec"),
        (("spec", "containers"), None, "Pod.spec.containers: required"),
        ((*CONTAINER, "name"), None, "Pod.spec.containers[0].name: required"),
        ((*CONTAINER, "args"), "run", "Pod.spec.containers[0].args: must be a list, got 'run'"),
        ((*CONTAINER, "env", 0, "value"), 1, "env[0].value: must be str, got 1"),
        (("spec", "terminationGracePeriodSeconds"), "55", "must be int, got '55'"),
        (("spec", "terminationGracePeriodSeconds"), True, "must be int, got True"),
        (("spec", "hostNetwork"), 0, "must be bool, got 0"),
        (("spec", "tolerations", 0, "effect"), "Always", "must be one of"),
        (("spec", "volumes", 0, "emptyDir", "medium"), "RAM", "must be one of"),
        ((*CONTAINER, "resources", "limits", "nvidia.com/gpu"), 1, "must be str, got 1"),
        ((*CONTAINER, "resources", "limits", "nvidia.com/gpu"), "one", "is no quantity"),
        ((*CONTAINER, "resources", "requests"), {"nvidia.com/gpu": "2"}, "must equal its limit"),
        ((*CONTAINER, "volumeMounts", 0, "name"), "x", "mounts no volume: 'x'"),
        ((*CONTAINER, "image"), None, "container 'base' has no image"),
        (("metadata", "name"), "Not_A_Name", "is no DNS label"),
        (("metadata", "labels", "team"), "a b", "is no label value"),
        (("metadata", "annotations", "vlmflow/spec"), "x" * (256 << 10), "bytes are more than"),
        (("metadata", "annotations", "vlmflow/spec/a"), "x", "is no key"),
        (("kind",), "Deployment", "kind must be one of"),
        (("apiVersion",), "v2", "apiVersion must be v1"),
    ],
)  # fmt: skip
def test_a_pod_with_a_fault_is_refused(path, value, fault):
    found = faults(changed(POD, path, value))
    assert len(found) == 1 and fault in found[0], found


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (("spec", "template"), None, "Job.spec.template: required"),
        (("spec", "template", "spec", "restartPolicy"), "OnFailure", "wants restartPolicy Never"),
        (("spec", "parallel"), 2, "Job.spec.parallel: unknown field of V1JobSpec"),
        (("spec", "podFailurePolicy", "rules", 0, "action"), "Fail", "must be one of"),
        (("spec", "podFailurePolicy", "rules", 0, "onExitCodes", "values"), ["2"], "must be int"),
        (("spec", "podFailurePolicy", "rules", 0, "onExitCodes", "values"), None, "required"),
        (("spec", "completionMode"), "Indexed", "spec.completions: required"),
    ],
)  # fmt: skip
def test_a_job_with_a_fault_is_refused(path, value, fault):
    found = faults(changed(JOB, path, value))
    assert len(found) == 1 and fault in found[0], found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_jobs_of_deploy_are_what_a_strict_server_takes(overlay):
    """Rules between fields, which the OpenAPI schemas do not tell: names, quantities, mounts."""
    manifests = yaml.safe_load_all((GOLDEN / f"{overlay}.yaml").read_text())
    (job,) = [manifest for manifest in manifests if manifest["kind"] == "Job"]
    assert faults(job) == []
