"""Reports of whole jobs are what the published schema says, and the docs name every field."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.job.jobs import records, run_job, write_manifest
from vlmflow.job.errors import TooManyFailuresError
from vlmflow.job.report import read_schema
from vlmflow.job.run import Assignment

DOCS = Path(__file__).parents[2] / "docs/report.md"

BAD = ["no JSON", {"id": "r1", "prompt": "again"}, {"id": "long", "prompt": "refuse"}]


pytestmark = pytest.mark.usefixtures("fake_engine")


def check(report: dict[str, Any]) -> None:
    schema = read_schema()
    Draft202012Validator.check_schema(schema)
    faults = [error.message for error in Draft202012Validator(schema).iter_errors(report)]
    assert faults == []
    counts = report["counts"]
    assert counts["records"] == counts["succeeded"] + counts["failed"] + counts["skipped"]
    failures = report["failures"].values()
    assert sum(failure["count"] for failure in failures) == counts["failed"] + counts["skipped"]
    assert all(sum(failure["stages"].values()) == failure["count"] for failure in failures)
    parts = report["time"]["parts"]
    assert sum(parts.values()) == pytest.approx(report["time"]["device_seconds"], abs=0.05)


def written(tmp_path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((tmp_path / "out/m/report.json").read_text())
    return report


def test_report_of_a_job_with_a_price_is_valid(tmp_path):
    manifest = write_manifest(tmp_path / "m.jsonl", records(20))
    run_job(tmp_path, manifest, tmp_path / "out", price_per_hour=2.5)
    report = written(tmp_path)
    check(report)
    expected = 2.5 * report["time"]["device_seconds"] / 3600
    assert report["cost"]["total"] == pytest.approx(expected, abs=1e-5)
    assert report["time"]["parts"]["startup"] > 0, "the engine of a fresh job loads too"


def test_report_of_shards_with_failures_is_valid(tmp_path):
    manifest = write_manifest(tmp_path / "m.jsonl", [*records(40), *BAD])
    for shard in (1, 0, 2):
        run_job(tmp_path, manifest, tmp_path / "out", Assignment(shard=shard), num_shards=3)
    report = written(tmp_path)
    check(report)
    assert len(report["attempts"]) == 3
    assert sum(attempt["succeeded"] for attempt in report["attempts"]) == 40


def test_report_of_a_second_generation_is_valid(tmp_path):
    manifest = write_manifest(tmp_path / "m.jsonl", [*records(40), *BAD])
    run_job(tmp_path, manifest, tmp_path / "out")
    run_job(tmp_path, manifest, tmp_path / "out", Assignment(rerun_failed=True))
    report = written(tmp_path)
    check(report)
    assert [g["asked"] for g in report["generations"]] == [41, 1]


def test_report_of_a_job_that_failed_is_valid(tmp_path):
    manifest = write_manifest(tmp_path / "m.jsonl", BAD[2:])
    with pytest.raises(TooManyFailuresError):
        run_job(tmp_path, manifest, tmp_path / "out")
    report = written(tmp_path)
    check(report)
    assert report["throughput"]["records_per_second"] == 0
    assert report["latency_seconds"]["p50"] is None


def test_field_that_the_schema_does_not_know_is_a_fault(tmp_path):
    manifest = write_manifest(tmp_path / "m.jsonl", records(1))
    report = run_job(tmp_path, manifest, tmp_path / "out")
    for extra in (report, report["counts"], report["time"]["parts"], report["attempts"][0]):
        extra["surprise"] = 1
        with pytest.raises(AssertionError, match="surprise"):
            check(report)
        del extra["surprise"]
    check(report)


def test_docs_name_every_field_of_report_and_progress(tmp_path):
    manifest = write_manifest(tmp_path / "m.jsonl", records(1))
    run_job(tmp_path, manifest, tmp_path / "out")
    progress = json.loads((tmp_path / "out/m/progress.json").read_text())
    text = DOCS.read_text(encoding="utf-8")
    missing = {name for name in (*names(read_schema()), *progress) if f"`{name}`" not in text}
    assert missing == set()


def test_report_hands_no_password_of_a_tracking_server_on(tmp_path):
    manifest = write_manifest(tmp_path / "m.jsonl", records(1))
    tracking = {"enabled": False, "uri": "postgresql://me:hunter2@host/db?password=hunter2"}
    run_job(tmp_path, manifest, tmp_path / "out", tracking=tracking)
    report = written(tmp_path)
    assert report["job"]["spec"]["tracking"]["uri"] is None
    for name in ("report.json", "report.html", "_work/job.json"):
        assert "hunter2" not in (tmp_path / "out/m" / name).read_text()


def names(schema: Any) -> Iterator[str]:
    """Every property that a schema names, at any depth."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for value in schema.values():
            yield from names(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from names(item)
