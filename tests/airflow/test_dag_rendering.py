"""What the tasks of our DAGs become once their templates are rendered with the form's values."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag

DAGS = Path(__file__).parents[2] / "dags"
CONNECTIONS = {
    "VLMFLOW_DEFAULT": {
        "conn_type": "vlmflow",
        "extra": {"endpoint_url": "http://s3", "image": "registry.example.org/vlmflow:0.1.0"},
    },
    "AWS_DEFAULT": {"conn_type": "aws", "login": "access", "password": "secret-of-the-connection"},
}
SUMMARY = {"job": "s3://demo/results/mine"}  # of the task merge
KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: none, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: none, context: {cluster: none, user: ""}}]
current-context: none
"""


@pytest.fixture
def render(monkeypatch: pytest.MonkeyPatch):
    """Makes a task's operator of one DAG, as one map index of it would run."""
    for name, connection in CONNECTIONS.items():
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps(connection))

    def render(dag_id: str, task_id: str, params: dict[str, Any], **mapped: Any) -> Any:
        (dag,) = DagBag(dag_folder=DAGS / f"{dag_id}.py").dags.values()
        task = dag.get_task(task_id)
        operator = task.unmap(mapped) if mapped else task
        params = {name: dag.params[name] for name in dag.params} | params
        ti = SimpleNamespace(xcom_pull=lambda **_: SUMMARY, map_index=-1, run_id="run")
        operator.render_template_fields({"params": params, "ti": ti, "dag": dag})
        return operator

    return render


def test_what_is_left_out_of_the_form_is_left_out_of_the_job(render):
    spec = render("vlm_batch_inference", "infer", {}, shard="1/4").job_spec()
    assert (spec.prompt, spec.num_shards, spec.name) == (None, 4, "shapes")
    assert spec.manifest == "s3://demo/shapes/manifest.jsonl"
    assert spec.limits.max_failure_rate == 0.1
    assert spec.endpoint_url == "http://s3"


def test_what_is_in_the_form_is_in_the_job_of_every_task(render):
    params = {
        "name": "mine",
        "prompt": 'Say "hello".',
        "num_shards": 7,
        "max_new_tokens": 5,
        "engine": {"dtype": "float32", "max_batch_size": 3},
        "limits": {"max_failure_rate": 0.5},
    }
    plan = render("vlm_batch_inference", "plan", params).job_spec()
    infer = render("vlm_batch_inference", "infer", params, shard="6/7")
    assert infer.job_spec().canonical_json() == plan.canonical_json()
    assert infer.run_arguments(plan) == ["run", "--spec", "-", "--shard", "6/7"]
    assert plan.prompt == 'Say "hello".'
    assert plan.generation.max_new_tokens == 5
    assert (plan.engine.dtype, plan.engine.max_batch_size) == ("float32", 3)
    assert plan.limits.max_failure_rate == 0.5


def test_a_gate_without_a_baseline_looks_at_the_run_alone(render):
    gate = render("vlm_batch_inference", "gate", {"name": "mine"})
    assert gate.baseline == gate.candidate["job"] == "s3://demo/results/mine"
    gate = render("vlm_batch_inference", "gate", {"baseline": "runs:/abc"})
    assert gate.baseline == "runs:/abc"


def test_a_pod_has_its_gpu_its_shard_and_no_secret_in_plain_text(render, tmp_path, monkeypatch):
    (tmp_path / "config").write_text(KUBECONFIG)
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config")
    )
    pod_operator = render("vlm_kubernetes", "infer", {"name": "mine"}, shard="2/8")
    pod = pod_operator.build_pod_request_obj()
    (container,) = pod.spec.containers
    assert container.resources.limits["nvidia.com/gpu"] in (1, "1")
    assert container.image == "registry.example.org/vlmflow:0.1.0"
    assert container.args[:2] == ["run", "--spec"] and container.args[-1] == "2/8"
    references = {e.name: e.value_from.secret_key_ref for e in container.env if e.value_from}
    assert references["AWS_SECRET_ACCESS_KEY"].name == "vlmflow-s3"
    assert "secret-of-the-connection" not in str(pod)
    assert pod.spec.termination_grace_period_seconds == 55
