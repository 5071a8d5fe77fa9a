"""What each kind of step leaves is what it says it can be asked for, and is made of its report."""

import json

from vlmflow.kfp_step import job_outputs, score_outputs
from vlmflow.kfp_step.executor_input import OutputNames, StepOutputs

COUNTS = {"records": 4, "succeeded": 3, "failed": 1, "skipped": 0}
REPORT = {
    "job": {"name": "shapes", "identity": "abc", "model": "s3://m"},
    "manifest": {"sha256": "f00"},
    "counts": {**COUNTS, "deduplicated": 0},
    "failures": {"image_missing": {"count": 1, "examples": [{"message": "no|such\nfile"}]}},
    "accuracy": {"exact_match": None},
    "throughput": {
        "seconds": 2.0,
        "images_per_second": None,
        "output_tokens_per_second": 7.5,
    },
    "evaluation": {"scores": {"anls": {"mean": 0.5}, "judge": {"mean": None}}},
    "results": {
        "results": "s3://o/shapes/results/",
        "failures": "s3://o/shapes/failures/",
        "report": "s3://o/shapes/report.json",
    },
    "mlflow": {"run_id": "r1"},
    "store": {"uri": "s3://o/shapes"},
}
PLAN = {
    "job": "s3://o/shapes",
    "manifest": "s3://m.jsonl",
    "sha256": "f00",
    "num_records": 4,
    "set_aside": 0,
    "shards": [{}, {}, {}],
}
SPEC = json.dumps({"endpoint_url": None, "tracking": {"uri": "http://mlflow"}})
EVALUATION = {
    "results": "s3://o/shapes",
    "counts": {"records": 4},
    "bootstrap": {"level": 0.95},
    "scores": {
        "anls": {"mean": 0.5, "low": 0.4, "high": 0.6, "scored": 4},
        "judge": {"mean": None, "low": None, "high": None, "scored": 0},
    },
}


def comparison(*, passed: bool) -> dict:
    score = {"mean_a": 0.5, "mean_b": 0.25, "difference": -0.25, "p_value": 0.01}
    return {
        "a": {"name": "old"},
        "b": {"name": "new"},
        "records": {"in_both": 4},
        "scores": {"anls": score, "judge": None},
        "gate": {
            "gate": "anls >= 0.9 and records > 1",
            "passed": passed,
            "clauses": [
                {"clause": "anls >= 0.9", "holds": passed, "a": 0.5, "b": 0.25},
                {"clause": "records > 1", "holds": True, "a": 4, "b": 4},
            ],
        },
    }


def names_of(outputs: StepOutputs) -> OutputNames:
    return OutputNames(frozenset(outputs.parameters), frozenset(outputs.artifacts))


def test_each_step_leaves_what_it_says_it_can_be_asked_for():
    plan = job_outputs.plan_outputs(PLAN, ["0/3", "1/3"], SPEC)
    shard = job_outputs.shard_outputs(
        "s3://o/shapes", "1/3", COUNTS, identity="abc", is_complete=False
    )
    assert names_of(plan) == job_outputs.PLAN_NAMES
    assert names_of(job_outputs.report_outputs(REPORT, b"<html>")) == job_outputs.JOB_NAMES
    assert names_of(shard) == job_outputs.JOB_NAMES
    assert (
        names_of(score_outputs.evaluation_outputs(EVALUATION, "s3://e"))
        == score_outputs.EVALUATION_NAMES
    )
    assert (
        names_of(score_outputs.comparison_outputs(comparison(passed=True), "<html>"))
        == score_outputs.COMPARISON_NAMES
    )


def test_a_plan_hands_on_the_spec_and_the_shards_that_have_records():
    told = job_outputs.plan_outputs(PLAN, ["0/3", "1/3"], SPEC).parameters
    assert (told["spec"], told["shards"], told["shard_count"]) == (SPEC, ["0/3", "1/3"], 3)
    assert (told["job_name"], told["manifest_sha256"]) == ("shapes", "f00")
    assert (told["endpoint_url"], told["mlflow_uri"]) == ("", "http://mlflow")


def test_a_report_becomes_a_dataset_with_counts_and_identity_and_metrics_of_numbers():
    outputs = job_outputs.report_outputs(REPORT, b"<html>")
    results, metrics = outputs.artifacts["results"], outputs.artifacts["metrics"]
    assert results.uri == "s3://o/shapes/results/"
    assert results.metadata["identity"] == "abc"
    assert {name: results.metadata[name] for name in COUNTS} == COUNTS
    # A launcher fails a Metrics artifact with anything but numbers in it.
    assert metrics.metadata == {
        **REPORT["counts"],
        "seconds": 2.0,
        "output_tokens_per_second": 7.5,
        "eval_anls": 0.5,
    }
    assert outputs.artifacts["report"].content == b"<html>"
    text = outputs.artifacts["summary"].content.decode()
    assert "| image_missing | 1 | no\\|such file |" in text
    assert outputs.parameters["mlflow_run_id"] == "r1"


def test_a_job_without_mlflow_has_an_empty_run():
    outputs = job_outputs.report_outputs({**REPORT, "mlflow": None, "failures": {}}, None)
    assert outputs.parameters["mlflow_run_id"] == ""
    assert b"failure" not in outputs.artifacts["summary"].content.replace(b"failures", b"")


def test_the_accuracy_is_the_first_scorers():
    outputs = score_outputs.evaluation_outputs(EVALUATION, "s3://e")
    assert outputs.parameters == {"accuracy": 0.5, "scored": 4, "evaluation_uri": "s3://e"}
    assert outputs.artifacts["metrics"].metadata == {"anls": 0.5, "records": 4}


def test_a_gate_that_is_not_passed_says_which_clauses_do_not_hold():
    outputs = score_outputs.comparison_outputs(comparison(passed=False), "<html>")
    assert outputs.parameters["is_passed"] is False
    assert outputs.parameters["gate_result"] == (
        "anls >= 0.9 and records > 1: not passed, for anls >= 0.9 (A 0.5, B 0.25)"
    )
    assert outputs.artifacts["metrics"].metadata["is_passed"] == 0.0
    passed = score_outputs.comparison_outputs(comparison(passed=True), "<html>")
    assert passed.parameters["is_passed"] is True
    assert passed.parameters["gate_result"].endswith(": passed")


def test_without_a_gate_nothing_is_asked():
    outputs = score_outputs.comparison_outputs({**comparison(passed=True), "gate": None}, "")
    assert outputs.parameters == {"is_passed": True, "gate_result": "there is no gate"}
