"""The Kubernetes operators in DAGs: serialised, mapped, rendered; and what they ask of RBAC."""

from datetime import UTC, datetime

import pytest
from airflow.sdk import DAG

from tests.airflow.kubernetes.kit import IMAGE
from tests.airflow.kubernetes.test_kubernetes_job import job_task
from tests.airflow.kubernetes.test_pod import pod_task
from vlmflow.airflow.operators.kubernetes_job import VLMBatchInferenceJobOperator
from vlmflow.airflow.operators.pod import VLMBatchInferencePodOperator

OPERATORS = [VLMBatchInferencePodOperator, VLMBatchInferenceJobOperator]
JOB = {"manifest": "s3://b/{{ ds }}/m.jsonl", "model": "m", "output": "s3://b/o"}


def make_dag(operator_class, **arguments):
    with DAG("shapes", start_date=datetime(2026, 1, 1, tzinfo=UTC), schedule=None) as dag:
        operator_class(task_id="infer", image=IMAGE, **JOB, **arguments)
    return dag


@pytest.mark.parametrize("operator_class", OPERATORS)
def test_every_template_field_is_an_attribute(operator_class):
    task = make_dag(operator_class).get_task("infer")
    assert [name for name in operator_class.template_fields if not hasattr(task, name)] == []


@pytest.mark.parametrize("operator_class", OPERATORS)
def test_templates_are_rendered_and_a_group_stays_a_dict(operator_class):
    task = make_dag(
        operator_class,
        gpus="{{ params.gpus }}",
        generation={"max_new_tokens": "{{ params.tokens }}"},
        env_vars={"HF_HOME": "/cache/{{ ds }}"},
    ).get_task("infer")
    task.render_template_fields({"ds": "2026-11-22", "params": {"gpus": 2, "tokens": 64}})
    assert task.gpus == "2" and task.manifest == "s3://b/2026-11-22/m.jsonl"
    assert task.generation == {"max_new_tokens": "64"}
    assert task.env_vars[0].value == "/cache/2026-11-22"


@pytest.mark.parametrize("operator_class", OPERATORS)
def test_shards_are_mapped_over(operator_class):
    with DAG("shapes", start_date=datetime(2026, 1, 1, tzinfo=UTC), schedule=None) as dag:
        operator_class.partial(task_id="infer", image=IMAGE, gpus=1, **JOB).expand(
            shard=["0/2", "1/2"]
        )
    mapped = dag.get_task("infer")
    one = mapped.unmap({"shard": "1/2"})
    assert isinstance(one, operator_class) and one.shard_number == 1 and one.gpus == 1


@pytest.mark.parametrize("operator_class", OPERATORS)
def test_a_dag_is_serialised_with_its_links(operator_class):
    from airflow.serialization.serialized_objects import DagSerialization

    read = DagSerialization.from_dict(DagSerialization.to_dict(make_dag(operator_class, gpus=1)))
    task = read.get_task("infer")
    assert set(task.template_fields) == set(operator_class.template_fields)
    assert len(task.operator_extra_links) == 3


VERBS = {"POST": "create", "GET": "get", "DELETE": "delete", "PATCH": "patch"}


def used(kit) -> set[str]:
    """What was asked of the API, as RBAC calls it."""
    found = set()
    for method, path in kit.server.requests:
        kind, *rest = path.split("/namespaces/default/")[1].split("/")
        part = f"/{rest[1]}" if len(rest) > 1 else ""
        verb = "list" if method == "GET" and not rest else VERBS[method]
        found.add(f"{kind}{part} {verb}")
    return found


POD_PERMISSIONS = {"pods create", "pods get", "pods list", "pods delete", "pods/log get"}
JOB_PERMISSIONS = {
    "jobs create", "jobs list", "jobs patch", "jobs/status get", "pods list", "pods/log get",
}  # fmt: skip


def test_the_pod_operator_needs_these_permissions(kit):
    pod_task(kit).run()
    assert used(kit) <= POD_PERMISSIONS | {"events list"}
    assert used(kit) >= POD_PERMISSIONS


def test_the_job_operator_needs_these_permissions(kit):
    job_task(kit).run()
    assert used(kit) == JOB_PERMISSIONS
