"""What breaks while a job runs: the worker, the store; and a job whose task sleeps."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.airflow.e2e.world import DAG, World, is_alive, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.timeout(900)]

NUM_GOOD = 120
SLOW = {
    "num_shards": 1,
    "engine": {"dtype": "float32", "max_batch_size": 1},
    "limits": {"max_failure_rate": 0.1, "commit_seconds": 0.1, "grace_seconds": 1},
}
NIGHTLY = "vlm_nightly_eval"


def start(world: World, run: str) -> tuple[dict[str, str], list[int]]:
    """A slow job that has committed something: its expected answers and its processes."""
    expected = world.write_manifest(run, NUM_GOOD)
    world.trigger(run, manifest=f"s3://demo/shapes/{run}.jsonl", **SLOW)
    wait_until(lambda: len(world.commits(run)) >= 3, 300, "three records committed")
    return expected, world.processes(run, "infer", 0)


def finish(world: World, run: str, expected: dict[str, str]) -> int:
    """Wait for the job's good end; return the number of tries that it took."""
    (tries,) = world.wait_for_shards(run, seconds=600)
    world.check_answers(run, expected)
    return tries


def parent_of(process_id: int) -> int:
    return int(Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_worker_killed_by_sigkill_takes_the_job_with_it_and_the_retry_goes_on(world: World):
    expected, processes = start(world, "sigkill")
    # The guard's parent is the process that runs the task, and that one's the worker.
    (runner,) = {parent_of(p) for p in processes} - set(processes)
    for process_id in (parent_of(runner), runner):
        os.kill(process_id, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, processes)), 40, "the end of the job")
    committed = world.commits("sigkill")
    assert 0 < len(committed) < NUM_GOOD, "it was in its midst"
    assert finish(world, "sigkill", expected) == 2


def test_a_running_task_that_is_cleared_ends_its_job_and_goes_on_with_it(world: World):
    expected, processes = start(world, "cleared")
    world.api.clear(DAG, "cleared", "infer", 0)
    wait_until(lambda: not any(map(is_alive, processes)), 60, "the end of the job")
    assert finish(world, "cleared", expected) == 2


def test_a_store_that_is_away_for_20_seconds_costs_an_attempt_at_most(world: World):
    expected, _ = start(world, "outage")
    world.way.is_cut = True
    world.way.reset_all()
    try:
        time.sleep(20)
    finally:
        world.way.heal()
    # The job asks again for about a quarter of a minute, then ends with 75.
    assert finish(world, "outage", expected) in (1, 2)


def start_nightly(world: World, run: str) -> dict[str, str]:
    expected = world.write_manifest(run, NUM_GOOD)
    world.api.wait_for_dag(NIGHTLY, seconds=120)
    world.api.unpause(NIGHTLY)
    conf = {
        "manifest": f"s3://demo/shapes/{run}.jsonl",
        "output": f"s3://demo/results/{run}",
        "gate": "accuracy >= -0.01",  # how fast a night is depends on who else is at work
    }
    world.api.trigger(NIGHTLY, run, conf)
    wait_until(lambda: infer_state(world, run) == "deferred", 300, "a deferred task")
    return expected


def infer_state(world: World, run: str) -> str:
    return str(world.api.tasks(NIGHTLY, run, "infer")[0]["state"])


def test_a_deferred_job_runs_while_its_task_sleeps_and_its_night_becomes_the_good_one(
    world: World,
):
    expected = start_nightly(world, "night")
    assert world.processes("night", "infer"), "the job runs and no worker waits for it"
    state = world.api.wait_for_run(NIGHTLY, "night", seconds=600)
    assert state == "success", world.explain(NIGHTLY, "night")
    summary = world.api.xcom(NIGHTLY, "night", "infer")
    assert summary["counts"]["succeeded"] == NUM_GOOD
    job = summary["job"].removeprefix("s3://demo/")
    assert [record["id"] for record in world.lines(f"{job}/results/")] == list(expected)
    assert "records" in world.api.log(NIGHTLY, "night", "infer"), "the triggerer told of progress"
    (event,) = world.api.asset_events(NIGHTLY, "night")
    assert event["extra"] == {"job": summary["job"]}
    states = {t["task_id"]: t["state"] for t in world.api.tasks(NIGHTLY, "night")}
    assert (states["keep"], states["alert"]) == ("success", "skipped")


def test_a_deferred_task_that_is_marked_as_failed_ends_its_job(world: World):
    start_nightly(world, "marked")
    processes = world.processes("marked", "infer")
    assert processes
    world.api.set_state(NIGHTLY, "marked", "infer", "failed")
    wait_until(lambda: not any(map(is_alive, processes)), 90, "the end of the job")
