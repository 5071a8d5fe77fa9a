"""A gate as a step; gates that hold and that do not are in tests/kubeflow/test_pipelines.py."""

import pytest

from tests.kubeflow.steps import run_step
from vlmflow.kubeflow.compare_gate.component import compare_gate

pytestmark = pytest.mark.usefixtures("job_environment")


def test_a_gate_that_is_none_fails_the_step_before_a_run_is_read(tmp_path):
    step = run_step(compare_gate, tmp_path / "step", candidate="/nonexistent", gate="accuracy >=")
    assert step.code == 2 and "gate 'accuracy >='" in step.err
    assert not (tmp_path / "step").exists()
