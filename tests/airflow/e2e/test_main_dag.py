"""The main DAG on a real Airflow, through its API: S3, MLflow and the shapes model are real too."""

import json

import pytest

from tests.airflow.e2e.world import DAG, World, wait_until
from tests.demo_services import fetch

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

RUN = "happy"
NUM_GOOD = 40
TASKS = {"wait_for_manifest", "plan", "merge", "evaluate", "gate", "publish"}


@pytest.fixture(scope="module")
def finished(world: World) -> tuple[World, dict[str, str]]:
    """A run that is over, and the expected answers of its records."""
    expected = world.write_manifest(RUN, NUM_GOOD)
    world.api.unpause("after_publish")
    world.trigger(RUN, manifest=f"s3://demo/shapes/{RUN}.jsonl")
    state = world.api.wait_for_run(DAG, RUN, seconds=300)
    assert state == "success", world.explain(DAG, RUN)
    return world, expected


def test_every_task_is_done_in_four_shards_and_the_gate_chose_to_publish(finished):
    world, _ = finished
    states = {(t["task_id"], t["map_index"]): t["state"] for t in world.api.tasks(DAG, RUN)}
    assert states.pop(("alert", -1)) == "skipped"
    assert set(states.values()) == {"success"}
    assert {i for name, i in states if name == "infer"} == {0, 1, 2, 3}
    assert {name for name, i in states if i == -1} == TASKS


def test_each_record_is_answered_once_and_the_bad_image_is_set_aside(finished):
    world, expected = finished
    world.check_answers(RUN, expected)


def test_the_summary_is_small_and_counts_what_the_report_counts(finished):
    world, _ = finished
    summary = world.api.xcom(DAG, RUN, "merge")
    report = json.loads(world.read(f"results/{RUN}/report.json"))
    assert len(json.dumps(summary)) < 4096
    assert summary["counts"] == report["counts"]
    assert (summary["counts"]["succeeded"], summary["counts"]["failed"]) == (NUM_GOOD, 1)
    assert summary["results"] == f"s3://demo/results/{RUN}/results/"
    shards = [world.api.xcom(DAG, RUN, "infer", index) for index in range(4)]
    assert [shard["shard"] for shard in shards] == ["0/4", "1/4", "2/4", "3/4"]
    for outcome in ("succeeded", "failed"):
        assert sum(shard["counts"][outcome] for shard in shards) == report["counts"][outcome]


def test_links_lead_to_pages_that_are_there(finished):
    world, _ = finished
    links = world.api.links(DAG, RUN, "merge")
    with fetch(links["Report"]) as page:
        assert b"<html" in page.read(2000)
    run_id = links["MLflow run"].rpartition("/")[2]
    run = world.mlflow_run(run_id)
    assert run["info"]["status"] == "FINISHED"
    assert links["MLflow run"].startswith(world.mlflow)
    with fetch(links["Results"]) as listing:
        assert f"results/{RUN}/results/00000.jsonl".encode() in listing.read()


def test_results_are_an_asset_event_that_says_how_many_and_which(finished):
    world, _ = finished
    events = {event["name"]: event for event in world.api.asset_events(DAG, RUN)}
    results = next(e for e in events.values() if e["uri"] == f"s3://demo/results/{RUN}/results")
    summary = world.api.xcom(DAG, RUN, "merge")
    assert results["extra"]["counts"] == summary["counts"]
    assert results["extra"]["digest"] == summary["digest"] is not None
    assert events["vlm_published"]["extra"]["digest"] == summary["digest"]


def test_a_dag_downstream_is_started_by_the_published_data(finished):
    world, _ = finished

    def runs():
        return world.api.call("GET", "/dags/after_publish/dagRuns")["dag_runs"]

    wait_until(runs, 60, "a run of the DAG downstream")
    assert runs()[0]["run_type"] == "asset_triggered"


def test_no_secret_is_in_a_log_or_an_xcom(finished):
    world, _ = finished
    from tools.airflow_connections import SECRET_KEY

    logs = [
        world.api.log(DAG, RUN, task["task_id"], task["map_index"])
        for task in world.api.tasks(DAG, RUN)
        if task["state"] == "success"
    ]
    assert "records" in "".join(logs)
    assert SECRET_KEY not in "".join(logs)
    assert SECRET_KEY not in json.dumps(world.api.xcom(DAG, RUN, "merge"))


@pytest.mark.slow
def test_a_second_run_of_the_job_computes_nothing_and_a_gate_that_fails_publishes_nothing(finished):
    world, expected = finished
    before = [key for key in world.keys(f"results/{RUN}/") if "/part-" in key]
    again = {"name": RUN, "manifest": f"s3://demo/shapes/{RUN}.jsonl"}
    world.trigger("again", **again, gate="exact_match >= 1.01")
    assert world.api.wait_for_run(DAG, "again", seconds=300) == "failed"
    states = {t["task_id"]: t["state"] for t in world.api.tasks(DAG, "again")}
    assert (states["gate"], states["publish"], states["alert"]) == ("success", "skipped", "failed")
    assert "does not hold" in world.api.log(DAG, "again", "alert")
    assert [key for key in world.keys(f"results/{RUN}/") if "/part-" in key] == before
    world.check_answers(RUN, expected)
