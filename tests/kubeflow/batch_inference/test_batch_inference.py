"""A shard and a whole job as steps, and steps that end at once because nothing can mend them."""

from pathlib import Path

import pytest

from tests.kubeflow.steps import as_inputs, make_job, run_step
from vlmflow.kubeflow.batch_inference.component import batch_inference
from vlmflow.kubeflow.plan_shards.component import plan_shards


def test_shards_leave_their_own_counts_and_the_last_one_completes_the_job(
    tmp_path, job_environment
):
    job = make_job(tmp_path, ["a", "b", "refuse", "c"], limits={"max_failure_rate": 0.5})
    plan = run_step(plan_shards, tmp_path / "plan", num_shards=2, **job)
    first = run_step(batch_inference, tmp_path / "0", shard="0/2", **as_inputs(plan))
    assert first.code == 0, first.err
    told = {name: first.outputs[name] for name in ("succeeded", "failed", "skipped")}
    assert told == {"succeeded": 2, "failed": 0, "skipped": 0}
    assert first.outputs["is_complete"] is False
    second = run_step(batch_inference, tmp_path / "1", shard="1/2", **as_inputs(plan))
    assert (second.outputs["succeeded"], second.outputs["failed"]) == (1, 1)
    assert second.outputs["is_complete"] is True
    results = second.outputs["results"]
    assert results.uri == f"{tmp_path}/out/shapes/results/"
    assert (results.metadata["shard"], results.metadata["failed"]) == ("1/2", 1)
    assert second.outputs["metrics"].metadata["records"] == 2
    assert Path(second.outputs["report_uri"]).is_file()
    assert "| failed | 1 |" in Path(second.outputs["summary"].uri).read_text()
    # A retry of what is done asks nothing again, and says the same.
    asked = job_environment.read_text()
    again = run_step(batch_inference, tmp_path / "2", shard="1/2", **as_inputs(plan))
    assert again.outputs["failed"] == 1
    assert job_environment.read_text() == asked


def test_a_job_without_shards_is_one_step(tmp_path, job_environment):
    plan = run_step(plan_shards, tmp_path / "plan", **make_job(tmp_path, 5))
    step = run_step(batch_inference, tmp_path / "step", **as_inputs(plan))
    assert step.code == 0, step.err
    assert (step.outputs["succeeded"], step.outputs["is_complete"]) == (5, True)
    assert step.outputs["results"].metadata["manifest_sha256"] == plan.outputs["manifest_sha256"]


def test_too_many_failures_fail_the_step_and_its_retry_loads_no_model(
    tmp_path, job_environment, monkeypatch
):
    job = make_job(tmp_path, ["refuse", "refuse", "a"])
    plan = run_step(plan_shards, tmp_path / "plan", **job)
    step = run_step(batch_inference, tmp_path / "step", **as_inputs(plan))
    assert step.code == 3
    assert not (tmp_path / "step").exists()
    # KFP retries whatever the code. An engine that would be started ends this with 4.
    monkeypatch.setenv("VLMFLOW_ENGINE_COMMAND", "false")
    again = run_step(batch_inference, tmp_path / "step", **as_inputs(plan))
    assert again.code == 3
    assert "2 of the 3 records failed" in again.err or "2 of 3 records failed" in again.err


def test_a_shard_on_its_way_to_fail_is_not_gone_on_with(tmp_path, job_environment, monkeypatch):
    # It ends while records are left: four seconds' worth of them.
    monkeypatch.setenv("FAKE_ENGINE_SECONDS", "0.02")
    limits = {"min_records": 5, "commit_records": 1}
    job = make_job(tmp_path, [f"refuse {n}" for n in range(400)], limits=limits)
    plan = run_step(plan_shards, tmp_path / "plan", num_shards=2, **job)
    step = run_step(batch_inference, tmp_path / "step", shard="0/2", **as_inputs(plan))
    assert step.code == 3 and "more than --max-failure-rate" in step.err
    monkeypatch.setenv("VLMFLOW_ENGINE_COMMAND", "false")
    again = run_step(batch_inference, tmp_path / "step", shard="0/2", **as_inputs(plan))
    assert again.code == 3 and "of shard 0 failed" in again.err
    # A higher limit is another matter: then it goes on, and needs the engine.
    spec = plan.outputs["spec"].replace('"max_failure_rate":0.1', '"max_failure_rate":1.0')
    inputs = as_inputs(plan) | {"spec": spec}
    assert run_step(batch_inference, tmp_path / "step", shard="0/2", **inputs).code == 4


def test_a_shard_that_was_killed_goes_on_where_it_stopped(tmp_path, job_environment, monkeypatch):
    job = make_job(tmp_path, 30, limits={"commit_records": 5})
    plan = run_step(plan_shards, tmp_path / "plan", num_shards=2, **job)
    monkeypatch.setenv("VLMFLOW_CRASH_AT", "commit-created:2")
    killed = run_step(batch_inference, tmp_path / "step", shard="0/2", **as_inputs(plan))
    assert killed.code == -9
    monkeypatch.delenv("VLMFLOW_CRASH_AT")
    asked = len(job_environment.read_text().splitlines())
    assert not (tmp_path / "step").exists()
    again = run_step(batch_inference, tmp_path / "step", shard="0/2", **as_inputs(plan))
    assert again.code == 0, again.err
    assert again.outputs["succeeded"] == 15
    # Ten were committed when it was killed; those are not asked again.
    assert len(job_environment.read_text().splitlines()) - asked == 5


@pytest.mark.parametrize(
    ("shard", "sentence"), [("2/2", "is not I/N"), ("0/3", "is planned in 2 shards")]
)
def test_a_shard_that_is_none_is_told_before_a_model_is_loaded(
    tmp_path, job_environment, monkeypatch, shard, sentence
):
    plan = run_step(plan_shards, tmp_path / "plan", num_shards=2, **make_job(tmp_path))
    step = run_step(batch_inference, tmp_path / "step", shard=shard, **as_inputs(plan))
    assert step.code == 2 and sentence in step.err
    assert not job_environment.exists()
