"""The evaluation as a phase of a run: in its report and beside it, and never in its way."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.job.jobs import make_spec, records, write_manifest
from vlmflow.cli import main
from vlmflow.evaluation.phase import make_evaluator
from vlmflow.job.errors import SpecError
from vlmflow.job.loop import StopSignal
from vlmflow.job.progress import LineDisplay
from vlmflow.job.report import read_schema
from vlmflow.job.run import JobRun


def run(tmp_path: Path, evaluation: dict[str, Any], maker: Any = make_evaluator) -> dict[str, Any]:
    lines = [*records(20), {"id": "bad", "prompt": "x", "images": ["no.png"], "expected": "x"}]
    manifest = write_manifest(tmp_path / "m.jsonl", lines)
    spec = make_spec(tmp_path, manifest, tmp_path / "out", evaluation=evaluation)
    job = JobRun(spec, display=LineDisplay(), stop=StopSignal(), make_evaluator=maker)
    report = job.run()
    assert report is not None
    return report


def faulty(text: str) -> float:
    raise RuntimeError("no")


def test_report_says_what_the_evaluation_found_and_where_it_is(tmp_path):
    report = run(tmp_path, {"scorers": "exact_match,chrf", "slices": ["id"]})
    written = json.loads((tmp_path / "out/m/report.json").read_text())
    assert written["evaluation"] == report["evaluation"]
    jsonschema.validate(written, read_schema())
    evaluation = report["evaluation"]
    assert evaluation["scorers"] == ["exact_match", "chrf"]
    assert evaluation["scores"]["exact_match"]["scored"] == 21
    for place in ("evaluation", "table"):
        assert Path(evaluation[place]).is_file()
    content = json.loads(Path(evaluation["evaluation"]).read_text())
    assert content["rows"][0]["prompt"].startswith("question")


def test_evaluation_may_change_between_attempts_of_one_job(tmp_path):
    first = run(tmp_path, {})
    assert "evaluation" not in first
    (tmp_path / "out/m/_SUCCESS.json").unlink()
    second = run(tmp_path, {"scorers": "token_f1"})
    assert second["job"]["identity"] == first["job"]["identity"]
    assert second["evaluation"]["scores"]["token_f1"]["scored"] == 21


def test_scorer_that_does_not_exist_is_told_before_anything_is_asked(tmp_path):
    with pytest.raises(SpecError, match="there is no scorer 'f2'"):
        run(tmp_path, {"scorers": "f2"})
    assert not (tmp_path / "out").exists()


def test_evaluation_that_fails_is_told_in_the_report_of_a_job_that_succeeds(tmp_path, capsys):
    report = run(tmp_path, {"scorers": f"{__name__}:faulty", "failed": "leave-out"})
    assert "RuntimeError: no" in report["evaluation"]["error"]
    jsonschema.validate(report, read_schema())
    assert (tmp_path / "out/m/_SUCCESS.json").is_file()
    assert "the evaluation failed" in capsys.readouterr().err


def test_caller_without_an_evaluator_does_not_leave_an_evaluation_out_silently(tmp_path):
    from vlmflow.job.evaluator import evaluates_nothing

    with pytest.raises(SpecError, match="this caller evaluates nothing"):
        run(tmp_path, {"scorers": "exact_match"}, evaluates_nothing)


def test_options_of_run_and_merge_evaluate(tmp_path, capsys):
    manifest = write_manifest(tmp_path / "m.jsonl", records(6))
    job = make_spec(tmp_path, manifest, tmp_path / "out")
    arguments = [
        "--manifest", job.manifest, "--model", job.model, "--output", job.output, "--no-mlflow",
        "--evaluate", "exact_match,anls", "--evaluate-by", "metadata.k",
        "--evaluate-failed", "leave-out",
    ]  # fmt: skip
    for shard in range(2):
        assert main(["run", *arguments, "--shard", f"{shard}/2"]) == 0
    (tmp_path / "out/m/_SUCCESS.json").unlink()
    (tmp_path / "out/m/evaluation.json").unlink()
    assert main(["merge", "--output", job.output, "--name", "m", "--no-mlflow"]) == 0
    report = json.loads((tmp_path / "out/m/report.json").read_text())
    assert report["evaluation"]["scorers"] == ["exact_match", "anls"]
    assert report["evaluation"]["failed_count_as"] == "leave-out"
    content = json.loads((tmp_path / "out/m/evaluation.json").read_text())
    assert list(content["slices"]) == ["metadata.k"]
