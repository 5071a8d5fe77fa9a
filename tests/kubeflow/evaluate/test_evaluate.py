"""Scores as a step; what a step that ends well leaves is in tests/kubeflow/test_pipelines.py."""

import pytest

from tests.kubeflow.steps import run_step
from vlmflow.kubeflow.evaluate.component import evaluate

pytestmark = pytest.mark.usefixtures("job_environment")


def test_a_place_without_results_fails_the_step(tmp_path):
    step = run_step(evaluate, tmp_path / "step", results=str(tmp_path / "none"))
    assert step.code == 2 and "holds no results" in step.err
    assert len(step.err.splitlines()) == 1
    assert not (tmp_path / "step").exists()
