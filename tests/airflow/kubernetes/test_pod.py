"""VLMBatchInferencePodOperator against a cluster whose pods are processes: what goes well."""

import json

import pytest
from airflow.providers.cncf.kubernetes.secret import Secret
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from kubernetes.client import models as k8s

from tests.airflow.kubernetes.kit import IMAGE, SECRET_VALUE, Kit, Task
from tests.airflow.kubernetes_api.schema import faults
from vlmflow.airflow.operators.pod import VLMBatchInferencePodOperator
from vlmflow.job.errors import SpecError

BOTH_WAYS = pytest.mark.parametrize("deferrable", [False, True], ids=["waiting", "deferred"])


def pod_task(kit: Kit, job: dict | None = None, **arguments) -> Task:
    given = {
        "task_id": "infer",
        "image": IMAGE,
        "startup_check_interval_seconds": 0.1,
        "poll_interval": 0.1,
        **(job or kit.job()),
        **arguments,
    }
    return Task(lambda: VLMBatchInferencePodOperator(**given))


@BOTH_WAYS
def test_a_job_runs_in_a_pod_and_its_summary_is_pushed(kit, deferrable):
    task = pod_task(kit, gpus=1, deferrable=deferrable)
    task.run()
    assert kit.results() == [f"r{n}" for n in range(6)] and kit.num_asked() == 6
    summary = task.xcoms["return_value"]
    assert summary["counts"]["succeeded"] == 6
    assert summary["results"] == f"{kit.output}/results/"
    assert len(json.dumps(summary)) < 4096
    assert kit.cluster.pod_names() == []  # on_finish_action's default
    (manifest,) = kit.cluster.created
    assert faults(manifest) == []
    spec = task.make().job_spec().canonical_json()
    assert manifest["metadata"]["annotations"]["vlmflow/spec"] == spec
    assert len(manifest["spec"]["containers"]) == 1  # no sidecar


def test_a_shard_is_done_when_it_is_sealed_and_the_last_one_writes_the_report(kit):
    first = pod_task(kit, shard="0/2")
    first.run()
    assert first.xcoms["return_value"]["counts"]["records"] == 3
    assert not (kit.output / "report.json").exists()
    second = pod_task(kit, shard="1/2", deferrable=True)
    second.run()
    assert second.xcoms["return_value"]["shard"] == "1/2"
    assert kit.results() == [f"r{n}" for n in range(6)]


def test_without_do_xcom_push_nothing_is_pushed(kit):
    task = pod_task(kit, do_xcom_push=False)
    assert task.run()["counts"]["succeeded"] == 6
    assert "return_value" not in task.xcoms


def test_a_secret_reaches_the_job_and_no_manifest(kit):
    task = pod_task(
        kit,
        image="python",
        cmds=["python", "-c", "import os; print(os.environ['AWS_SECRET_ACCESS_KEY'])"],
        secrets=[Secret("env", "AWS_SECRET_ACCESS_KEY", "s3", "AWS_SECRET_ACCESS_KEY")],
        on_finish_action="keep_pod",
    )
    with pytest.raises(AirflowException, match="no committed report"):
        task.run()
    assert SECRET_VALUE in kit.pod_log(kit.cluster.pod_names()[0])
    assert SECRET_VALUE not in json.dumps(kit.cluster.created)


@pytest.mark.slow
def test_the_cluster_may_be_away_for_a_moment(kit):
    # 503 three times for what lists and reads pods; the provider asks again.
    kit.server.refusals["GET .*/pods.*"] = 2
    pod_task(kit).run()
    assert kit.server.refusals["GET .*/pods.*"] == 0
    assert len(kit.results()) == 6


# -- what is refused before a pod is made


def test_a_plain_credential_is_refused_when_the_dag_is_read(kit):
    with pytest.raises(SpecError, match="HF_TOKEN.*Kubernetes Secret") as caught:
        pod_task(kit, env_vars={"HF_TOKEN": "hunter2"}).make()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"env_vars": [k8s.V1EnvVar(name="HF_TOKEN", value="hunter2")]},
        {
            "full_pod_spec": k8s.V1Pod(
                spec=k8s.V1PodSpec(
                    containers=[
                        k8s.V1Container(
                            name="base", env=[k8s.V1EnvVar(name="HF_TOKEN", value="hunter2")]
                        )
                    ]
                )
            )
        },
    ],
    ids=["env_vars", "full_pod_spec"],
)
def test_a_plain_credential_is_refused_wherever_it_comes_from(kit, arguments):
    with pytest.raises(AirflowFailException, match="HF_TOKEN.*Kubernetes Secret"):
        pod_task(kit, **arguments).run()
    assert kit.cluster.created == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"image": None}, "image must be given, here or in the connection"),
        ({"gpus": "many"}, "gpus must be a whole number from 0, got 'many'"),
        ({"gpus": -1}, "gpus must be a whole number from 0, got -1"),
        ({"termination_grace_period": 3}, "termination_grace_period is 3 s and .* 5:"),
        ({"tracking": {"uri": "http://u:p@mlflow"}}, "must have no user, password"),
        ({"generation": {"max_new_token": 1}}, "max_new_token"),
        ({"prompt": "p" * (300 << 10)}, "the spec has .* bytes"),
    ],
)
def test_what_cannot_run_is_refused_in_a_sentence_and_not_retried(kit, arguments, sentence):
    with pytest.raises(AirflowFailException, match=sentence):
        pod_task(kit, **arguments).run()
    assert kit.cluster.created == []


def test_arguments_are_the_jobs(kit):
    with pytest.raises(SpecError, match="arguments is not an argument of this operator"):
        pod_task(kit, arguments=["run"]).make()


def test_gpus_may_be_a_template_and_a_selector_of_ones_own_stays(kit):
    task = pod_task(kit, gpus="2", node_selector={"pool": "a100"}, gpu_resource="amd.com/gpu")
    pod = task.make().build_pod_request_obj(task.context())
    assert pod.spec.node_selector == {"pool": "a100"}
    assert pod.spec.containers[0].resources.limits == {"amd.com/gpu": "2"}
    assert pod.spec.tolerations[0].key == "amd.com/gpu"
