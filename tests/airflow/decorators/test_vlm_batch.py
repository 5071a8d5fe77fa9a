"""@task.vlm_batch: what a function returns is what a job asks."""

import json
from pathlib import Path

import pytest
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowFailException

from tests.airflow.jobs import make_job
from vlmflow.airflow.decorators.vlm_batch import VLMBatchDecoratedOperator

pytestmark = pytest.mark.usefixtures("job_environment")


def make(function, job) -> VLMBatchDecoratedOperator:
    return VLMBatchDecoratedOperator(task_id="ask", python_callable=function, **job)


def test_it_is_a_decorator_of_airflow(tmp_path):
    job = make_job(tmp_path)
    with DAG("d", schedule=None):

        @task.vlm_batch(**job)
        def ask() -> list[str]:
            return ["What is this?"]

        asked = ask()
    assert isinstance(asked.operator, VLMBatchDecoratedOperator)
    assert asked.operator.task_id == "ask"


def test_records_become_a_manifest_that_is_known_by_its_content(tmp_path, context):
    job = make_job(tmp_path)
    del job["manifest"]

    def ask() -> list:
        return ["What is this?", {"id": "b", "prompt": "And {{ ds }}?"}]

    first = make(ask, job).execute({**context, "ds": "2026-01-02"})
    assert first["counts"]["succeeded"] == 2
    [manifest] = Path(job["output"], "_manifests").iterdir()
    assert manifest.stem == first["name"]
    assert [json.loads(line)["id"] for line in manifest.read_text().splitlines()] == ["000000", "b"]
    assert make(ask, job).execute(dict(context))["identity"] == first["identity"]  # done already


def test_a_dict_goes_before_the_decorators_arguments(tmp_path, context):
    job = make_job(tmp_path, 5, limit=4)
    operator = make(lambda: {"limit": 2, "name": "two-{{ ds }}"}, job)
    summary = operator.execute({**context, "ds": "2026"})
    assert (summary["name"], summary["counts"]["records"]) == ("two-2026", 2)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "it returned None"),
        ([], "it returned"),
        (
            {"nonesuch": 1},
            "'nonesuch', which the function returned, is no field of a job; there are shard, name",
        ),
        ([3], "record 0 is neither a text nor a dict: 3"),
        (["a", {"prompt": object()}], "record 1 cannot be written as JSON: Object of type object"),
        ([{"prompt": float("nan")}], "record 0 cannot be written as JSON: Out of range"),
        ([{1: 2}], "record 0 cannot be written as JSON"),
    ],
)
def test_what_is_no_job_fails_for_good(tmp_path, context, returned, message):
    with pytest.raises(AirflowFailException, match=message):
        make(lambda: returned, make_job(tmp_path)).execute(context)
