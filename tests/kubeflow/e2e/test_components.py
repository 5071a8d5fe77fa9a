"""Each component by itself, in a container: its parameters and its artifacts."""

import json
from pathlib import Path

import pytest

from tests.kubeflow.e2e.world import NUM_GOOD, World
from vlmflow.kubeflow.batch_inference.component import batch_inference
from vlmflow.kubeflow.compare_gate.component import compare_gate
from vlmflow.kubeflow.evaluate.component import evaluate
from vlmflow.kubeflow.merge_report.component import merge_report
from vlmflow.kubeflow.plan_shards.component import plan_shards

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.timeout(1200)]

JOB = "steps"
URI = f"s3://demo/results/{JOB}"


@pytest.fixture(scope="module")
def outputs(world: World) -> dict:
    """What each of the five leaves: one job in two shards, a step after the other."""
    left = {}
    with world.kubeflow():
        left["plan"] = plan = plan_shards(**world.job(JOB, num_shards=2)).outputs
        job = {"spec": plan["spec"], "manifest_sha256": plan["manifest_sha256"]}
        for shard in plan["shards"]:
            left[shard] = batch_inference(shard=shard, **job).outputs
        left["merge"] = merge = merge_report(**job).outputs
        servers = {"endpoint_url": world.s3, "mlflow_uri": world.mlflow}
        run_id = merge["mlflow_run_id"]
        left["evaluate"] = evaluate(results=URI, mlflow_run_id=run_id, **servers).outputs
        left["gate"] = compare_gate(candidate=URI, gate="exact_match >= 0.9", **servers).outputs
        left["no gate"] = compare_gate(candidate=URI, gate="exact_match > 1", **servers).outputs
    return left


def text(artifact) -> str:
    return Path(artifact.path).read_text()


def test_a_plan_says_what_every_later_step_needs(world, outputs):
    plan = outputs["plan"]
    assert plan["shards"] == ["0/2", "1/2"]
    assert (plan["shard_count"], plan["records"]) == (2, NUM_GOOD + 1)
    assert (plan["job_name"], plan["job_uri"]) == (JOB, URI)
    assert (plan["endpoint_url"], plan["mlflow_uri"]) == (world.s3, world.mlflow)
    assert plan["manifest_sha256"] == world.report(JOB)["manifest"]["sha256"]
    assert json.loads(plan["spec"])["manifest"] == f"s3://demo/shapes/{JOB}.jsonl"
    assert text(plan["summary"]).startswith(f"# Plan of {JOB}\n")


def test_a_shard_counts_its_own_records_and_the_last_one_knows_that_all_is_done(outputs):
    first, last = outputs["0/2"], outputs["1/2"]
    assert (first["is_complete"], last["is_complete"]) == (False, True)
    assert first["succeeded"] + last["succeeded"] == NUM_GOOD
    assert first["failed"] + last["failed"] == 1
    results = last["results"]
    assert (type(results).__name__, results.uri) == ("Dataset", f"{URI}/results/")
    assert results.metadata["shard"] == "1/2"
    assert results.metadata["succeeded"] == last["succeeded"]
    assert first["metrics"].metadata["succeeded"] == first["succeeded"]
    assert "shard 0/2" in text(first["summary"]).lower()


def test_merged_results_are_exact_and_the_artifacts_say_so(world, outputs):
    world.check_job(JOB)
    merge, report = outputs["merge"], world.report(JOB)
    assert (merge["records"], merge["succeeded"], merge["failed"]) == (NUM_GOOD + 1, NUM_GOOD, 1)
    assert merge["results"].uri == merge["results_uri"] == f"{URI}/results/"
    assert merge["results"].metadata["identity"] == report["job"]["identity"]
    assert merge["metrics"].metadata["succeeded"] == NUM_GOOD
    assert text(merge["report"]).encode() == world.read(f"results/{JOB}/report.html")
    assert f"| succeeded | {NUM_GOOD} |" in text(merge["summary"])
    run = world.mlflow_run(merge["mlflow_run_id"])
    assert run["info"]["status"] == "FINISHED"


def test_scores_are_metrics_and_are_logged_to_the_jobs_run(world, outputs):
    scored = outputs["evaluate"]
    assert (scored["accuracy"], scored["scored"]) == (1.0, NUM_GOOD)
    assert scored["metrics"].metadata["exact_match"] == 1.0
    assert scored["evaluation_uri"] == f"{URI}/evaluation.json"
    assert json.loads(world.read(f"results/{JOB}/evaluation.json"))["scores"]["exact_match"]
    run = world.mlflow_run(outputs["merge"]["mlflow_run_id"])
    logged = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    assert logged["eval_exact_match"] == 1.0


def test_a_gate_answers_yes_or_no_and_shows_both_runs(outputs):
    passed, failed = outputs["gate"], outputs["no gate"]
    assert (passed["is_passed"], failed["is_passed"]) == (True, False)
    assert passed["gate_result"] == "exact_match >= 0.9: passed"
    assert failed["gate_result"].startswith("exact_match > 1: not passed")
    assert "<html" in text(passed["report"])
    assert "exact_match" in text(failed["summary"])


def test_an_injected_mlflow_run_is_written_to_and_not_ended(world):
    """KFP 2.17 starts a run for each pipeline run, names it to each step, and ends it itself."""
    name = "injected"
    run_id = world.start_mlflow_run()
    with world.kubeflow({"MLFLOW_RUN_ID": run_id, "MLFLOW_TRACKING_URI": world.mlflow}):
        plan = plan_shards(**world.job(name, num_good=6, tracking={})).outputs
        job = {"spec": plan["spec"], "manifest_sha256": plan["manifest_sha256"]}
        done = batch_inference(**job).outputs
        merged = merge_report(**job).outputs
    assert done["is_complete"] is True
    assert merged["mlflow_run_id"] == run_id
    run = world.mlflow_run(run_id)
    assert (run["info"]["status"], run["info"].get("end_time")) == ("RUNNING", None)
    logged = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    assert (logged["records_succeeded"], logged["records_failed"]) == (6, 1)
