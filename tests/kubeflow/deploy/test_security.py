"""What a worker may do: the restricted profile of Kubernetes' pod security standards, and less."""

import json
import re

import pytest

from tests.kubeflow.deploy.rendered import (
    OVERLAYS,
    container,
    objects,
    pod_template,
    spec_text,
    the,
)

for_each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
USER = 10001  # of the image


@for_each_overlay
def test_the_pod_is_one_of_the_restricted_profile(overlay):
    spec = pod_template(overlay)["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys()
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container(overlay)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    kinds = {kind for volume in spec["volumes"] for kind in volume.keys() - {"name"}}
    assert kinds == {"configMap", "emptyDir"}


@for_each_overlay
def test_all_that_a_worker_writes_is_a_volume_of_limited_size(overlay):
    """The root file system is read-only, and a full disk is its neighbours' too."""
    volumes = {item["name"]: item for item in pod_template(overlay)["spec"]["volumes"]}
    writable = {
        mount["mountPath"]: volumes[mount["name"]]["emptyDir"]
        for mount in container(overlay)["volumeMounts"]
        if not mount.get("readOnly")
    }
    assert writable.keys() == {"/var/cache/vlmflow", "/tmp", "/dev/shm"}
    assert all(volume["sizeLimit"] for volume in writable.values())
    assert writable["/dev/shm"]["medium"] == "Memory"
    plain = {item["name"]: item.get("value") for item in container(overlay)["env"]}
    assert plain["HOME"] == plain["XDG_CACHE_HOME"] == "/var/cache/vlmflow"
    on_disk = sum(
        int(volume["sizeLimit"].removesuffix("Gi"))
        for volume in writable.values()
        if "medium" not in volume
    )
    limits = container(overlay)["resources"]["limits"]
    assert on_disk < int(limits["ephemeral-storage"].removesuffix("Gi"))
    assert int(limits["memory"].removesuffix("Gi")) > int(
        writable["/dev/shm"]["sizeLimit"].removesuffix("Gi")
    )


@for_each_overlay
def test_a_worker_has_no_token_of_the_cluster(overlay):
    assert pod_template(overlay)["spec"]["automountServiceAccountToken"] is False
    assert the(overlay, "ServiceAccount")["automountServiceAccountToken"] is False
    kinds = {manifest["kind"] for manifest in objects(overlay)}
    assert not kinds & {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "Secret"}


@for_each_overlay
def test_credentials_are_references_and_may_be_missing(overlay):
    """Where a cloud's identity is used there are none; the job says so itself if it wants one."""
    secret = re.compile("KEY|TOKEN|PASSWORD|SECRET|USERNAME")
    for variable in container(overlay)["env"]:
        if secret.search(variable["name"]):
            assert "value" not in variable
            reference = variable["valueFrom"]["secretKeyRef"]
            assert reference["optional"] is True
            # As in the Kubeflow pipelines, so that one Secret does for both.
            assert reference["key"] == variable["name"]
            assert reference["name"] in ("vlmflow-aws", "vlmflow-mlflow", "vlmflow-hub")
        else:
            assert "valueFrom" not in variable
    assert "envFrom" not in container(overlay)
    spec = json.loads(spec_text(overlay))
    assert "@" not in spec["tracking"]["uri"] and spec["endpoint_url"] is None


@for_each_overlay
def test_memory_is_not_overcommitted_more_than_said_and_the_cpu_is_not_throttled(overlay):
    resources = container(overlay)["resources"]
    assert "cpu" not in resources["limits"] and "cpu" in resources["requests"]
    assert resources["limits"]["memory"]
