"""Scores as a step."""

from pathlib import Path

from tests.kubeflow.finished_job import finished_job
from tests.kubeflow.steps import run_step
from vlmflow.kubeflow.evaluate.component import evaluate


def test_answers_are_scored(tmp_path, job_environment):
    job = finished_job(tmp_path)
    step = run_step(evaluate, tmp_path / "step", results=job, scorers="exact_match,token_f1")
    assert step.code == 0, step.err
    assert (step.outputs["accuracy"], step.outputs["scored"]) == (0.0, 8)
    assert set(step.outputs["metrics"].metadata) == {"exact_match", "token_f1", "records"}
    assert Path(step.outputs["evaluation_uri"]).is_file()
    assert "| exact_match | 0.0000 |" in Path(step.outputs["summary"].uri).read_text()
    elsewhere = run_step(evaluate, tmp_path / "none", results=str(tmp_path / "none"))
    assert elsewhere.code == 2 and "holds no results" in elsewhere.err
