"""A deferred job: its progress is shown, its end is seen, and a kill reaches it."""

import asyncio
import json
import os
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path

import pytest
from airflow.sdk.serde import deserialize, serialize

from tests.airflow.jobs import stand_in, wait_until
from vlmflow.airflow.process import DetachedProcess
from vlmflow.airflow.triggers.progress import ProgressTrigger, describe

PROGRESS = {
    "status": "running",
    "records": 100,
    "done": 40,
    "failed": 2,
    "records_per_second": 7.5,
    "eta_seconds": 8.0,
    "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
}
POLITE = "trap 'exit 75' TERM; echo ready; while :; do sleep 0.05; done"


def start(tmp_path: Path, script: str) -> DetachedProcess:
    return DetachedProcess.start(
        tmp_path / "folder",
        [stand_in(tmp_path, script)],
        environment=os.environ,
        given="",
        grace_seconds=5,
        digest="d",
    )


def make(tmp_path: Path, process: DetachedProcess, **more) -> ProgressTrigger:
    values = {
        "job_uri": str(tmp_path / "job"),
        "endpoint_url": None,
        "aws_conn_id": None,
        "shard": None,
        "process": process.as_dict(),
        "poll_interval": 0.02,
    }
    return ProgressTrigger(**(values | more))


def write_progress(tmp_path: Path, **more) -> None:
    (tmp_path / "job").mkdir(exist_ok=True)
    (tmp_path / "job" / "progress.json").write_text(json.dumps(PROGRESS | more))


async def first_event(trigger: ProgressTrigger) -> dict:
    async for event in trigger.run():
        return event.payload
    raise AssertionError("no event")


def fire(trigger: ProgressTrigger, seconds: float = 20) -> dict:
    return asyncio.run(asyncio.wait_for(first_event(trigger), seconds))


def elsewhere(process: DetachedProcess) -> DetachedProcess:
    described = process.described | {"boot_id": "another machine", "host": "worker-7"}
    return DetachedProcess(process.folder, described, process.digest)


def test_a_trigger_comes_back_from_the_database_as_it_went(tmp_path):
    process = start(tmp_path, "exit 0")
    trigger = make(
        tmp_path, process, shard=3, aws_conn_id="aws", endpoint_url="http://s3:9000", deadline=7.5
    )
    path, values = trigger.serialize()
    again = deserialize(serialize(values))
    module, _, name = path.rpartition(".")
    assert getattr(import_module(module), name)(**again).serialize() == (path, values)


def test_it_shows_progress_and_fires_when_the_process_has_ended(tmp_path, monkeypatch):
    process = start(tmp_path, "sleep 0.5; exit 0")
    write_progress(tmp_path)
    trigger = make(tmp_path, process)
    told: list[str] = []
    monkeypatch.setattr(trigger.log, "info", lambda text, *values: told.append(text % values))
    event = fire(trigger)
    assert (event["status"], event["process"]) == ("ended", process.as_dict())
    assert told == ["running: 40/100 records, 2 failed, 7.5/s, ETA 8 s"]  # once, as it stayed so
    assert not process.is_running


def test_a_shards_progress_is_its_latest_attempts(tmp_path, monkeypatch):
    process = start(tmp_path, "sleep 0.3")
    attempts = tmp_path / "job" / "_work" / "progress"
    attempts.mkdir(parents=True)
    for shard, epoch, done in ((1, 0, 5), (1, 1, 9), (2, 0, 7)):
        content = PROGRESS | {"shard": shard, "done": done, "failed_in_all": 1}
        del content["records"], content["eta_seconds"]
        (attempts / f"0000-{shard:05d}-{epoch:06d}.json").write_text(json.dumps(content))
    trigger = make(tmp_path, process, shard=1)
    told: list[str] = []
    monkeypatch.setattr(trigger.log, "info", lambda text, *values: told.append(text % values))
    fire(trigger)
    assert told == ["running: 9 records, 1 failed, 7.5/s"]


def test_a_store_that_does_not_answer_is_waited_for(tmp_path, monkeypatch):
    process = start(tmp_path, "sleep 0.3")
    trigger = make(tmp_path, process, job_uri="ftp://no/store")
    told: list[str] = []
    monkeypatch.setattr(trigger.log, "warning", lambda text, *values: told.append(text % values))
    assert fire(trigger)["status"] == "ended"
    assert "cannot tell how far the job is" in told[0]


def test_a_kill_from_the_ui_ends_the_process(tmp_path):
    process = start(tmp_path, POLITE)
    wait_until(lambda: list(process.lines()), "it has begun")
    asyncio.run(make(tmp_path, process).on_kill())
    wait_until(lambda: not process.is_running, "it has ended")
    assert process.ended().code == 75


def test_a_restart_of_the_triggerer_does_not_end_it(tmp_path):
    process = start(tmp_path, POLITE)
    wait_until(lambda: list(process.lines()), "it has begun")
    trigger = make(tmp_path, process)

    async def be_cancelled() -> None:
        task = asyncio.create_task(first_event(trigger))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await trigger.cleanup()

    asyncio.run(be_cancelled())
    assert process.is_running
    process.terminate()
    wait_until(lambda: not process.is_running, "it has ended")


@pytest.mark.parametrize("status", ["complete", "failed"])
def test_of_a_job_elsewhere_its_own_word_counts(tmp_path, status):
    process = elsewhere(start(tmp_path, "exit 0"))
    write_progress(tmp_path, status=status)
    assert fire(make(tmp_path, process))["status"] == "ended"


def test_a_job_elsewhere_without_a_sign_of_life_is_lost(tmp_path, monkeypatch):
    process = elsewhere(start(tmp_path, "exit 0"))
    old = datetime.now(UTC) - timedelta(seconds=700)
    write_progress(tmp_path, updated_at=old.isoformat(timespec="seconds"))
    trigger = make(tmp_path, process)
    with pytest.raises(TimeoutError):  # it has just begun to look
        fire(trigger, 0.3)
    monkeypatch.setattr("vlmflow.airflow.triggers.progress._SILENT_SECONDS", 0.2)
    event = fire(trigger)
    assert event["status"] == "lost"
    assert "on worker-7 gave no sign of life" in event["message"]


def test_progress_is_one_line():
    assert describe(PROGRESS | {"failed": 0, "records_per_second": 0.0, "eta_seconds": None}) == (
        "running: 40/100 records"
    )
