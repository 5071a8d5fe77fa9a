"""A job beside the worker: what the task comes to is what the job has committed."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from airflow.sdk import Asset, AssetAlias
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from tests.airflow.conftest import TaskInstance
from tests.airflow.jobs import make_job, processes_with, stand_in, wait_until
from tests.job_processes import JOB_PYTHON
from vlmflow.airflow.assets import results_asset
from vlmflow.airflow.operators.batch_inference import VLMBatchInferenceOperator
from vlmflow.airflow.process import DetachedProcess

pytestmark = pytest.mark.usefixtures("job_environment")


def make(job, **more) -> VLMBatchInferenceOperator:
    return VLMBatchInferenceOperator(task_id="infer", **{**job, **more})


def report_of(job) -> dict:
    return json.loads((Path(job["output"]) / "shapes" / "report.json").read_text())


def test_a_job_is_run_and_its_summary_is_that_of_the_committed_report(
    tmp_path, context, monkeypatch
):
    said: list[str] = []
    monkeypatch.setattr(VLMBatchInferenceOperator, "say", lambda self, line: said.append(line))
    outlet = results_asset(str(tmp_path / "out"), "shapes")
    alias, other = AssetAlias("anything"), Asset("s3://bucket/other")
    job = make_job(tmp_path, [*(f"question {n}" for n in range(19)), "refuse"])
    operator = make(job, outlets=[outlet, alias, other])
    summary = operator.execute(context)

    report = report_of(job)
    assert summary["counts"] == report["counts"]
    assert (summary["counts"]["succeeded"], summary["failures"]) == (19, {"prompt_too_long": 1})
    assert summary["results"] == report["results"]["results"]
    assert summary["throughput"] == report["throughput"]
    assert len(json.dumps(summary)) < 4096
    links = context["ti"].pushed
    assert links["vlmflow_report"] == f"file://{tmp_path}/out/shapes/report.html"
    assert (
        operator.operator_extra_links[1].get_link(operator, ti_key=None)
        == (links["vlmflow_report"])
    )
    events = context["outlet_events"]
    assert events[outlet].extra["counts"] == report["counts"]
    assert events[outlet].extra["digest"] == summary["digest"] is not None
    assert events[other].extra == {}
    [event] = events[alias].asset_alias_events
    assert event.dest_asset_key.uri == outlet.uri
    assert any("20/20 records" in line for line in said)
    assert any(line.startswith("succeeded") for line in said)
    assert list((tmp_path / "cache" / "vlmflow" / "airflow").iterdir()) == []  # nothing is kept


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (2, AirflowFailException, "told why .exit code 2"),
        (3, AirflowFailException, "told why .exit code 3"),
        (4, AirflowException, "told why .exit code 4.; a retry goes on"),
        (75, AirflowException, "told why .exit code 75.; a retry goes on"),
        (137, AirflowException, "told why .exit code 137.; a retry goes on"),
    ],
)
def test_exit_codes_say_whether_a_retry_would_help(tmp_path, context, code, kind, message):
    python = stand_in(tmp_path, f"echo 'vlmflow: told why'; exit {code}")
    with pytest.raises(AirflowException, match=message) as error:
        make(make_job(tmp_path, python=python)).execute(context)
    assert type(error.value) is kind


def test_too_many_failures_are_told_with_their_classes(tmp_path, context):
    job = make_job(tmp_path, ["refuse", "refuse again", "fine"])
    with pytest.raises(AirflowFailException) as error:
        make(job).execute(context)
    message = str(error.value)
    assert "2 of 3 records failed" in message
    assert "prompt_too_long 2 (prepare; such as r0: too long)" in message


def test_a_manifest_that_is_not_there_fails_for_good(tmp_path, context):
    job = make_job(tmp_path, manifest=str(tmp_path / "none.jsonl"))
    with pytest.raises(AirflowFailException, match="none.jsonl"):
        make(job).execute(context)


def test_a_field_that_is_not_right_fails_before_a_process_is_started(tmp_path, context):
    job = make_job(tmp_path, num_shards=0, python=str(tmp_path / "none"))
    with pytest.raises(AirflowFailException, match="num_shards"):
        make(job).execute(context)


def test_an_interpreter_that_is_not_there_is_named(tmp_path, context):
    job = make_job(tmp_path, python=str(tmp_path / "none"))
    with pytest.raises(AirflowFailException, match="none' is no program"):
        make(job).execute(context)


def test_an_interpreter_without_vlmflow_fails_for_good(tmp_path, context):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    python.chmod(0o755)
    with pytest.raises(AirflowFailException, match="No module named vlmflow; give python=") as e:
        make(make_job(tmp_path, python=str(python))).execute(context)
    assert "\n" not in str(e.value)


def test_an_environment_that_is_none_fails_for_good(tmp_path, context):
    with pytest.raises(AirflowFailException, match="env must be a dict"):
        make(make_job(tmp_path, env=["A=1"])).execute(context)


@pytest.mark.parametrize("shard", [None, "0/1"])
def test_exit_code_0_without_a_committed_report_is_no_success(tmp_path, context, shard):
    python = stand_in(tmp_path, "exit 0")
    with pytest.raises(AirflowException, match="exit code 0, but .* no committed"):
        make(make_job(tmp_path, python=python), shard=shard).execute(context)


def test_what_is_committed_must_add_up_and_be_this_jobs(tmp_path, context):
    job = make_job(tmp_path, 5)
    make(job).execute(context)
    folder = Path(job["output"]) / "shapes"
    job["python"] = stand_in(tmp_path, "exit 0")
    for name, change, message in (
        ("_SUCCESS.json", {"identity": "another"}, "are of two jobs"),
        ("report.json", {"counts": {"succeeded": 4}}, "cannot be judged by its report"),
    ):
        content = (folder / name).read_text()
        changed = json.loads(content)
        for key, value in change.items():
            changed[key] = changed[key] | value if isinstance(value, dict) else value
        (folder / name).write_text(json.dumps(changed))
        with pytest.raises(AirflowException, match=message):
            make(job).execute(context)
        (folder / name).write_text(content)
    assert make(job).execute(context)["counts"]["succeeded"] == 5


def test_a_killed_task_drains_leaves_no_process_and_its_retry_goes_on(
    tmp_path, context, monkeypatch, job_environment
):
    monkeypatch.setenv("FAKE_ENGINE_SECONDS", "0.05")
    job = make_job(tmp_path, 60, limits={"commit_seconds": 0.1, "grace_seconds": 2})
    marker = str(tmp_path / "cache")  # stands in the environment of all that belongs to the job
    operator = make(job)
    errors: list[BaseException] = []

    def execute() -> None:
        try:
            operator.execute(context)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=execute)
    thread.start()
    wait_until(lambda: _num_asked(job_environment) > 5, "some records are asked")
    operator.on_kill()
    thread.join(30)
    assert not thread.is_alive()
    [error] = errors
    assert type(error) is AirflowException and "exit code 75" in str(error)
    assert processes_with(marker) == []
    num_before = _num_asked(job_environment)
    assert num_before < 60

    monkeypatch.setenv("FAKE_ENGINE_SECONDS", "0")
    summary = make(job).execute(context)
    assert summary["counts"]["succeeded"] == 60
    # What was committed is not asked again; what was in flight, up to a batch, may be.
    assert _num_asked(job_environment) - 60 <= 16


def test_a_task_that_is_killed_early_starts_no_process(tmp_path, context):
    operator = make(make_job(tmp_path, python=stand_in(tmp_path, f"touch {tmp_path}/started")))
    operator.on_kill()
    with pytest.raises(AirflowException, match="killed before its process was started"):
        operator.execute(context)
    assert not (tmp_path / "started").exists()


def _num_asked(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_process_that_an_attempt_left_behind_is_ended_before_the_next(tmp_path, context):
    slow = "trap 'exit 75' TERM; while :; do sleep 0.05; done"
    operator = make(make_job(tmp_path, 3))
    left = DetachedProcess.start(
        operator.task_folder(context),
        [stand_in(tmp_path, slow)],
        environment=os.environ,
        given="",
        grace_seconds=5,
        digest="another attempt's",
    )
    assert left.is_running
    operator.execute(context)
    assert not left.is_running


def test_task_instances_have_folders_of_their_own(tmp_path):
    operator = make(make_job(tmp_path))
    instances = [
        TaskInstance("a"),
        TaskInstance("b"),
        TaskInstance("a", run_id="another"),
        TaskInstance("a", map_index=0),
        TaskInstance("a", map_index=1),
    ]
    folders = [operator.task_folder({"ti": ti}) for ti in instances]
    assert len(set(folders)) == len(folders)
    again = TaskInstance("a")
    again.try_number = 2
    assert operator.task_folder({"ti": again}) == folders[0]


def test_the_time_out_of_a_task_ends_its_job(tmp_path, context):
    job = make_job(tmp_path, python=stand_in(tmp_path, "echo $$; exec sleep 333"))
    operator = make(job, grace_seconds=1.0)
    pids: list[int] = []

    def time_out(line: str) -> None:
        pids.append(int(line))
        raise TimeoutError

    operator.say = time_out
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        operator.execute(context)
    assert time.monotonic() - began < 10
    assert not psutil.pid_exists(pids[0])


def test_a_worker_killed_by_sigkill_takes_its_job_along(tmp_path, context):
    """The task runner cannot tell anybody: the guard sees it."""
    pid_file = tmp_path / "pid"
    python = stand_in(tmp_path, f"echo $$ > {pid_file}; exec sleep 333")
    operator = make(make_job(tmp_path, python=python), grace_seconds=1.0)
    worker = os.fork()  # as the supervisor makes its task runners
    if not worker:
        try:
            operator.execute(context)
        finally:
            os._exit(1)
    try:
        wait_until(lambda: pid_file.exists() and pid_file.read_text().strip(), "the job runs", 60)
        pid = int(pid_file.read_text())
        assert psutil.pid_exists(pid)
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
    wait_until(lambda: not psutil.pid_exists(pid), "the job has ended", 15)


def test_the_jobs_own_interpreter_is_used_and_not_the_workers(tmp_path):
    operator = make(make_job(tmp_path))
    assert operator.command(["run"])[:3] == [str(JOB_PYTHON), "-m", "vlmflow"]
