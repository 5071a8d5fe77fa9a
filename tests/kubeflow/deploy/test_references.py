"""Names, labels and numbers of one object that another one counts on.

No schema knows them, and a server finds out late: a pod that never starts, a policy for nobody.
"""

import json
import signal
from urllib.parse import urlsplit

import pytest

from tests.kubeflow.deploy.rendered import (
    OVERLAYS,
    container,
    objects,
    pod_template,
    spec_text,
    the,
)
from vlmflow.job.errors import EXIT_BAD_INPUT, EXIT_FAILURES, EXIT_RESUMABLE
from vlmflow.kubeflow.image import DEFAULT_IMAGE

SECONDS_AFTER_THE_GRACE = 30  # as vlmflow.airflow.operators.pod_parts.EXIT_SECONDS
JOB_LABELS = {"app.kubernetes.io/name": "vlmflow", "app.kubernetes.io/instance": "shapes"}

for_each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@for_each_overlay
def test_the_pod_names_objects_that_are_there(overlay):
    names = {(item["kind"], item["metadata"]["name"]) for item in objects(overlay)}
    assert len(names) == len(objects(overlay)) == 5
    spec = pod_template(overlay)["spec"]
    assert ("ServiceAccount", spec["serviceAccountName"]) in names
    configs = [item["configMap"]["name"] for item in spec["volumes"] if "configMap" in item]
    assert [("ConfigMap", name) in names for name in configs] == [True]


@for_each_overlay
def test_workers_are_let_through_to_the_mlflow_that_the_spec_names(overlay):
    uri = urlsplit(json.loads(spec_text(overlay))["tracking"]["uri"])
    rule = the(overlay, "NetworkPolicy")["spec"]["egress"][2]
    assert rule["ports"] == [{"protocol": "TCP", "port": uri.port}]
    (peer,) = rule["to"]
    namespace = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert uri.hostname.split(".")[1:] == [namespace, "svc"]


@for_each_overlay
def test_every_mount_has_a_volume_and_every_volume_a_mount(overlay):
    volumes = [volume["name"] for volume in pod_template(overlay)["spec"]["volumes"]]
    mounts = container(overlay)["volumeMounts"]
    assert sorted(volumes) == sorted(mount["name"] for mount in mounts)
    assert len({mount["mountPath"] for mount in mounts}) == len(mounts)


@for_each_overlay
def test_budget_and_policy_are_of_this_jobs_pods_and_of_no_others(overlay):
    """Two budgets for one pod, and nobody can evict it."""
    assert pod_template(overlay)["metadata"]["labels"] == JOB_LABELS
    assert the(overlay, "PodDisruptionBudget")["spec"]["selector"] == {"matchLabels": JOB_LABELS}
    assert the(overlay, "NetworkPolicy")["spec"]["podSelector"] == {"matchLabels": JOB_LABELS}


@for_each_overlay
def test_the_budget_is_one_that_holds_for_a_jobs_pods(overlay):
    """Kubernetes knows no scale of a Job: only minAvailable as a number works."""
    spec = the(overlay, "PodDisruptionBudget")["spec"]
    assert "maxUnavailable" not in spec and isinstance(spec["minAvailable"], int)
    assert spec["minAvailable"] < the(overlay, "Job")["spec"]["parallelism"]


@for_each_overlay
def test_as_many_workers_as_completions_and_no_more_than_shards(overlay):
    spec = the(overlay, "Job")["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] > 1
    assert json.loads(spec_text(overlay))["num_shards"] >= 4 * spec["parallelism"]
    assert "--worker" in container(overlay)["args"]


@for_each_overlay
def test_a_worker_that_is_done_says_so_for_the_job(overlay):
    assert the(overlay, "Job")["spec"]["successPolicy"] == {"rules": [{"succeededCount": 1}]}


@for_each_overlay
def test_what_becomes_of_an_exit_code_is_what_the_code_means(overlay):
    job = the(overlay, "Job")["spec"]
    rules = job["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["FailJob", "Ignore", "Ignore"]
    final, disrupted, resumable = rules
    assert final["onExitCodes"] == {
        "containerName": container(overlay)["name"],
        "operator": "In",
        "values": [EXIT_BAD_INPUT, EXIT_FAILURES],
    }
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert resumable["onExitCodes"] == {
        "containerName": container(overlay)["name"],
        "operator": "In",
        "values": [EXIT_RESUMABLE, 128 + signal.SIGTERM],
    }
    # What such a policy wants.
    assert pod_template(overlay)["spec"]["restartPolicy"] == "Never"
    assert job["podReplacementPolicy"] == "Failed"
    # What is ignored could go on for ever.
    assert job["activeDeadlineSeconds"] > 0


@for_each_overlay
def test_a_worker_is_not_killed_while_it_commits(overlay):
    arguments = container(overlay)["args"]
    grace = json.loads(spec_text(overlay))["limits"]["grace_seconds"]
    if "--grace" in arguments:
        grace = float(arguments[arguments.index("--grace") + 1])
    spec = pod_template(overlay)["spec"]
    assert spec["terminationGracePeriodSeconds"] >= grace + SECONDS_AFTER_THE_GRACE


@for_each_overlay
def test_the_spec_is_mounted_where_the_command_looks_for_it(overlay):
    found = container(overlay)
    assert found["command"] == ["vlmflow"]
    assert found["args"][:3] == ["run", "--spec", "/etc/vlmflow/spec.json"]
    places = {mount["name"]: mount["mountPath"] for mount in found["volumeMounts"]}
    assert places["vlmflow-spec"] == "/etc/vlmflow"


def test_a_gpu_comes_with_its_taint_and_its_nodes():
    for overlay in ("gpu", "spot", "kueue"):
        spec = pod_template(overlay)["spec"]
        assert container(overlay)["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
        assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"
        assert container(overlay)["image"] == DEFAULT_IMAGE
    assert "nvidia" not in json.dumps(objects("cpu"))
    assert container("cpu")["image"] == f"{DEFAULT_IMAGE}-cpu"


def test_spot_nodes_are_chosen_and_their_taints_borne_on_each_cloud():
    spec = pod_template("spot")["spec"]
    affinity = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    # Terms are alternatives, the expressions of one term are not.
    terms = [term["matchExpressions"] for term in affinity["nodeSelectorTerms"]]
    assert [len(expressions) for expressions in terms] == [1, 1, 1, 1]
    keys = {expressions[0]["key"] for expressions in terms}
    tainted = {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"}
    assert tainted < keys
    assert {item["key"] for item in spec["tolerations"]} == {"nvidia.com/gpu", *tainted}


def test_kueue_lets_the_job_begin_with_as_many_workers_as_there_is_room_for():
    job = the("kueue", "Job")
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    annotations = job["metadata"]["annotations"]
    assert annotations["kueue.x-k8s.io/job-min-parallelism"] == "1"
    assert annotations["kueue.x-k8s.io/job-completions-equal-parallelism"] == "true"
    # Its quota is counted by requests, of which a limit is one too.
    assert {"cpu", "memory"} <= container("kueue")["resources"]["requests"].keys()
