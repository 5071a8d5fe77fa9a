"""Plan, mapped shards, merge: the same job, cut up and put together."""

import json

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from tests.airflow.jobs import make_job
from vlmflow.airflow.assets import results_asset
from vlmflow.airflow.operators.batch_inference import VLMBatchInferenceOperator
from vlmflow.airflow.operators.merge import VLMMergeOperator
from vlmflow.airflow.operators.plan_shards import VLMPlanShardsOperator

pytestmark = pytest.mark.usefixtures("job_environment")


def test_a_job_is_planned_done_in_shards_and_merged(tmp_path, context):
    job = make_job(tmp_path, ["one", "two", "refuse", "four"], limits={"max_failure_rate": 0.5})
    plan = VLMPlanShardsOperator(task_id="plan", num_shards=2, **job)
    shards = plan.execute(context)
    assert shards == [{"shard": "0/2"}, {"shard": "1/2"}]

    place = {name: job[name] for name in ("output", "python")} | {"name": "shapes"}
    merge = VLMMergeOperator(
        task_id="merge", outlets=[results_asset(job["output"], "shapes")], **place
    )
    first = VLMBatchInferenceOperator(task_id="infer", **shards[0], **job).execute(context)
    assert first["counts"] == {"records": 2, "succeeded": 2, "failed": 0, "skipped": 0}
    assert (first["shard"], first["is_job_done"]) == ("0/2", False)
    with pytest.raises(AirflowException, match="1 of 2 shards of .* are not done: 1 .*75") as error:
        merge.execute(context)
    assert type(error.value) is AirflowException  # somebody may still be at it: try again

    second = VLMBatchInferenceOperator(task_id="infer", shard="1/2", **job).execute(context)
    assert (second["counts"]["failed"], second["is_job_done"]) == (1, True)
    summary = merge.execute(context)
    counts = summary["counts"]
    assert (counts["records"], counts["succeeded"], counts["failed"]) == (4, 3, 1)
    assert context["outlet_events"][merge.outlets[0]].extra["digest"] == summary["digest"]
    whole = VLMMergeOperator(task_id="again", **job).execute(context)
    assert whole == summary


def test_more_shards_than_records_are_not_all_mapped_over(tmp_path, context):
    job = make_job(tmp_path, 2)
    shards = VLMPlanShardsOperator(task_id="plan", num_shards=5, **job).execute(context)
    assert shards == [{"shard": "0/5"}, {"shard": "1/5"}]


def test_a_merge_needs_to_know_where_the_job_is(tmp_path, context):
    with pytest.raises(AirflowFailException, match="output and name must be given"):
        VLMMergeOperator(task_id="merge", output=str(tmp_path)).execute(context)


def test_mlflows_address_goes_by_the_environment(context, monkeypatch):
    extra = {"mlflow_uri": "http://u:p@mlflow:5000"}
    monkeypatch.setenv("AIRFLOW_CONN_VLM", json.dumps({"conn_type": "vlmflow", "extra": extra}))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    operator = VLMMergeOperator(task_id="m", output="o", name="n", vlmflow_conn_id="vlm")
    assert operator.process_environment(context)["MLFLOW_TRACKING_URI"] == extra["mlflow_uri"]
    own = VLMMergeOperator(
        task_id="m", output="o", name="n", vlmflow_conn_id="vlm", tracking={"uri": "http://other"}
    )
    assert own.process_environment(context)["MLFLOW_TRACKING_URI"] == "http://other"
