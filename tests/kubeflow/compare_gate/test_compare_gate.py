"""A gate as a step: not passed is an answer, and a gate that is none is a fault."""

from pathlib import Path

from tests.kubeflow.finished_job import finished_job
from tests.kubeflow.steps import run_step
from vlmflow.kubeflow.compare_gate.component import compare_gate


def test_a_gate_says_which_way_a_pipeline_goes(tmp_path, job_environment):
    job = finished_job(tmp_path)
    # Without a baseline: for gates of plain numbers.
    failed = run_step(compare_gate, tmp_path / "b", candidate=job, gate="accuracy >= 0.5")
    assert failed.code == 0, failed.err
    assert failed.outputs["is_passed"] is False
    assert b"<html" in Path(failed.outputs["report"].uri).read_bytes()
    assert "not passed, for accuracy >= 0.5 (A 0.0, B 0.0)" in failed.outputs["gate_result"]
    assert failed.outputs["metrics"].metadata["is_passed"] == 0.0


def test_a_gate_that_is_none_fails_the_step(tmp_path, job_environment):
    step = run_step(compare_gate, tmp_path / "step", candidate="/nonexistent", gate="accuracy >=")
    assert step.code == 2 and "gate 'accuracy >='" in step.err
