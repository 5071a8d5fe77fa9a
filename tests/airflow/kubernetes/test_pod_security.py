"""What a pod may do, where it writes, and who has the last word on both."""

from typing import Any

import pytest
import yaml
from kubernetes.client import ApiClient
from kubernetes.client import models as k8s

from tests.airflow.kubernetes.kit import ROOT, Task
from tests.airflow.kubernetes.test_manifests import COMMON
from vlmflow.airflow.operators.pod import VLMBatchInferencePodOperator

pytestmark = pytest.mark.usefixtures("kit")  # the provider asks where the cluster is


def pod_of(**arguments: Any) -> dict[str, Any]:
    task = Task(lambda: VLMBatchInferencePodOperator(**COMMON, **arguments), try_number=1)
    pod = task.make().build_pod_request_obj(task.context())
    return dict(ApiClient().sanitize_for_serialization(pod)["spec"])


def mounts(spec: dict[str, Any]) -> set[str]:
    return {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}


def variables(spec: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item.get("value") for item in spec["containers"][0]["env"]}


def test_a_pod_is_as_restricted_as_those_of_deploy():
    spec = pod_of()
    job = yaml.safe_load((ROOT / "deploy/base/job.yaml").read_text())
    theirs = job["spec"]["template"]["spec"]
    for field in ("securityContext", "automountServiceAccountToken", "restartPolicy"):
        assert spec[field] == theirs[field]
    ours, (container,) = spec["containers"][0], theirs["containers"]
    for field in ("securityContext", "command", "terminationMessagePolicy"):
        assert ours.get(field) == container[field]
    assert ours["args"] == container["args"][:3]
    assert mounts(spec) == mounts(theirs) - {"/dev/shm"}
    assert variables(spec).items() >= {
        (name, variables(theirs)[name]) for name in ("HOME", "XDG_CACHE_HOME")
    }
    names = {volume["name"] for volume in theirs["volumes"]}
    assert {volume["name"] for volume in pod_of(gpus=1)["volumes"]} == names


def test_a_user_of_ones_own_and_a_writable_root_are_taken():
    spec = pod_of(
        security_context=k8s.V1PodSecurityContext(run_as_user=500),
        container_security_context={"allowPrivilegeEscalation": False},
        automount_service_account_token=True,
    )
    assert spec["securityContext"] == {"runAsUser": 500}
    assert spec["containers"][0]["securityContext"] == {"allowPrivilegeEscalation": False}
    assert spec["automountServiceAccountToken"] is True
    assert mounts(spec) == {"/etc/vlmflow"}
    assert "HOME" not in variables(spec)


@pytest.mark.parametrize(
    "context",
    [{"readOnlyRootFilesystem": True}, k8s.V1SecurityContext(read_only_root_filesystem=True)],
)
def test_a_read_only_root_has_volumes_for_what_is_written_whoever_asked_for_it(context):
    assert mounts(pod_of(container_security_context=context)) >= {"/var/cache/vlmflow", "/tmp"}


def test_a_cache_of_ones_own_is_mounted_instead():
    spec = pod_of(
        volumes=[
            k8s.V1Volume(
                name="models",
                persistent_volume_claim=k8s.V1PersistentVolumeClaimVolumeSource("models"),
            )
        ],
        volume_mounts=[k8s.V1VolumeMount(name="models", mount_path="/var/cache/vlmflow")],
        env_vars={"HOME": "/tmp"},
    )
    (mount,) = [
        mount
        for mount in spec["containers"][0]["volumeMounts"]
        if mount["mountPath"] == "/var/cache/vlmflow"
    ]
    assert mount["name"] == "models"
    assert variables(spec)["HOME"] == "/tmp"


def test_a_pod_template_decides_itself():
    template = {
        "apiVersion": "v1",
        "kind": "Pod",
        "spec": {
            "securityContext": {"runAsUser": 500},
            "containers": [{"name": "base", "image": "registry.example.org/vlmflow:0.1.0"}],
        },
    }
    spec = pod_of(pod_template_dict=template)
    assert spec["securityContext"] == {"runAsUser": 500}
    assert "securityContext" not in spec["containers"][0]
    assert mounts(spec) == {"/etc/vlmflow"}
