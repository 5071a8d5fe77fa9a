"""What is told of a job's end, and how much of it."""

import json

import pytest
from airflow.sdk.exceptions import AirflowFailException

from vlmflow.airflow.operators.outcome import (
    MAX_SUMMARY_BYTES,
    below_limit,
    check_exit,
    output_of,
    summarise_report,
    taxonomy,
)
from vlmflow.airflow.process import Ended


def report(num_classes: int = 2, uri: str = "s3://data/out/m") -> dict:
    failures = {
        f"class_{n}": {
            "count": n + 1,
            "stages": {"prepare": n + 1},
            "examples": [{"id": f"r{n}", "message": "x" * 500}],
        }
        for n in range(num_classes)
    }
    num_failed = sum(failure["count"] for failure in failures.values())
    return {
        "store": {"uri": uri},
        "job": {"name": "m", "identity": "i" * 64},
        "results": {
            name: f"{uri}/{name}" for name in ("results", "failures", "report", "report_html")
        },
        "counts": {
            "records": 100,
            "succeeded": 100 - num_failed,
            "failed": num_failed,
            "skipped": 0,
        },
        "failures": failures,
        "throughput": {"images_per_second": 1.5},
        "mlflow": {"run_id": "f00"},
        "accuracy": {"exact_match": 0.5},
        "evaluation": {"scores": {"anls": {"mean": 0.25}}},
    }


def test_a_summary_holds_what_is_asked_for():
    summary = summarise_report(report(), digest="d")
    assert summary["failures"] == {"class_1": 2, "class_0": 1}  # most frequent first
    assert (summary["mlflow_run_id"], summary["scores"]) == ("f00", {"anls": 0.25})


def test_a_summary_stays_below_4_kb_and_keeps_what_counts():
    long = report(uri="s3://data/" + "x" * 1000)
    long["evaluation"]["scores"] = {f"scorer_{n}": {"mean": 1.0} for n in range(300)}
    whole = summarise_report(long, digest="d")
    assert len(json.dumps(whole).encode()) < MAX_SUMMARY_BYTES
    assert whole["counts"] == long["counts"]
    assert {"results", "digest", "mlflow_run_id"} <= whole.keys()
    assert "scores" not in whole
    assert below_limit({"a": 1}) == {"a": 1}


def test_the_taxonomy_is_short_and_has_an_example_of_each_class():
    told = taxonomy(report(num_classes=12))
    assert told.startswith("78 of 100 records failed")
    assert "class_11 12 (prepare; such as r11: xxx" in told
    assert "and 4 classes more" in told
    assert len(told) < 4000


def test_code_3_without_a_report_tells_what_the_job_said():
    with pytest.raises(AirflowFailException, match=r"too many \(model_error 7\) \(exit code 3\)"):
        check_exit(Ended(3, ("vlmflow: too many (model_error 7)",)), None)


def test_an_end_that_nobody_saw_is_left_to_the_report():
    check_exit(Ended(None), None)
    check_exit(Ended(0), None)


def test_what_is_no_json_is_told():
    assert output_of(Ended(0, output='{"a": 1}')) == {"a": 1}
    with pytest.raises(
        AirflowFailException, match="exit code 0, but what it printed is no JSON: '"
    ):
        output_of(Ended(0, output="-m vlmflow plan\n"))


def test_an_interpreter_without_vlmflow_is_no_case_for_a_retry():
    with pytest.raises(AirflowFailException, match="No module named vlmflow; give python="):
        check_exit(Ended(1, ("/usr/bin/python3: No module named vlmflow",)), None)
