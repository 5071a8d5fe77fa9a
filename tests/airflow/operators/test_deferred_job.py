"""A deferred job: its process outlives the slot, and its end is seen and judged afterwards."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowException, TaskDeferred

from tests.airflow.jobs import make_job, stand_in, wait_until
from vlmflow.airflow.operators.batch_inference import VLMBatchInferenceOperator
from vlmflow.airflow.process import DetachedProcess

pytestmark = pytest.mark.usefixtures("job_environment")


def make(job, **more) -> VLMBatchInferenceOperator:
    return VLMBatchInferenceOperator(task_id="infer", **{**job, **more})


def defer(operator, context) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context)
    return deferred.value


def test_a_deferred_job_is_judged_when_its_process_has_ended(tmp_path, context, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(VLMBatchInferenceOperator, "say", lambda self, line: said.append(line))
    job = make_job(tmp_path, 10)
    operator = make(job, deferrable=True)
    trigger = defer(operator, context).trigger
    process = DetachedProcess.of(trigger.process)
    wait_until(lambda: not process.is_running, "the job is done")
    event = trigger._event("ended").payload
    summary = make(job, deferrable=True).execute_complete(context, event)
    assert summary["counts"]["succeeded"] == 10
    assert any("10/10 records" in line for line in said)
    assert not process.folder.exists()


def test_a_second_attempt_finds_the_deferred_process_of_the_first(tmp_path, context, monkeypatch):
    monkeypatch.setenv("FAKE_ENGINE_SECONDS", "0.2")
    job = make_job(tmp_path, 100, limits={"grace_seconds": 0})
    first = defer(make(job, deferrable=True), context).trigger
    second = defer(make(job, deferrable=True), context).trigger
    assert first.process == second.process
    # Another job of the same task instance is none to go on with.
    third = defer(make(job, deferrable=True, seed=1), context).trigger
    assert third.process["described"]["pid"] != first.process["described"]["pid"]
    assert not DetachedProcess.of(first.process).is_running
    process = DetachedProcess.of(third.process)
    process.terminate()
    wait_until(lambda: not process.is_running, "it has ended")


def test_an_end_that_nobody_saw_is_judged_by_what_is_committed(tmp_path, context):
    job = make_job(tmp_path, 5)
    trigger = defer(make(job, deferrable=True), context).trigger
    process = DetachedProcess.of(trigger.process)
    wait_until(lambda: not process.is_running, "the job is done")
    trigger.process["described"]["boot_id"] = "another machine"
    event = trigger._event("ended").payload
    assert make(job).execute_complete(context, event)["counts"]["succeeded"] == 5
    (Path(job["output"]) / "shapes" / "_SUCCESS.json").unlink()
    with pytest.raises(AirflowException, match="no committed report"):
        make(job).execute_complete(context, event)


def test_a_job_that_is_lost_may_be_tried_again(tmp_path, context):
    job = make_job(tmp_path, 200)
    trigger = defer(make(job, deferrable=True), context).trigger
    DetachedProcess.of(trigger.process).terminate()
    event = trigger._event("lost", "no sign of life for 601 s").payload
    with pytest.raises(AirflowException, match="no sign of life .*; a retry goes on") as error:
        make(job).execute_complete(context, event)
    assert type(error.value) is AirflowException
    wait_until(lambda: not DetachedProcess.of(trigger.process).is_running, "it has ended")


def test_the_time_out_of_a_deferred_task_ends_its_job(tmp_path, context):
    """Airflow's own would fail the task and leave the process to itself."""
    job = make_job(tmp_path, python=stand_in(tmp_path, "trap 'exit 75' TERM; sleep 333 & wait"))
    operator = make(job, deferrable=True, execution_timeout=timedelta(seconds=0.3))
    deferred = defer(operator, context)
    assert deferred.timeout is None
    process = DetachedProcess.of(deferred.trigger.process)
    deferred.trigger.poll_interval = 60  # the deadline is not slept over

    async def first_event() -> dict:
        return (await anext(deferred.trigger.run())).payload

    event = asyncio.run(asyncio.wait_for(first_event(), 10))
    assert event["status"] == "late"
    assert process.is_running
    with pytest.raises(AirflowException, match="not done within execution_timeout; a retry") as e:
        make(job).execute_complete(context, event)
    assert type(e.value) is AirflowException
    assert not process.is_running
    assert not process.folder.exists()
