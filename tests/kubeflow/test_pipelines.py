"""Whole pipelines through kfp.local, with processes in the place of containers."""

import json
import logging
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kfp import local
from kfp.local import docker_task_handler, status

from tests.kubeflow.mended_local import mend_loops
from tests.kubeflow.steps import make_job, run_command
from tools.kubeflow_files import load_pipeline


@pytest.fixture
def tasks(
    tmp_path: Path, job_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[tuple[str, int]]]:
    """The commands that were run, in their order, with their exit codes."""
    done: list[tuple[str, int]] = []

    def run(self: docker_task_handler.DockerTaskHandler) -> status.Status:
        # As the image has it: nothing of the environment but what the task was given.
        ended: subprocess.CompletedProcess[str] = run_command(self.full_command, **self.env_vars)
        print(ended.stdout, ended.stderr)
        done.append((" ".join(self.full_command[:2]), ended.returncode))
        is_well = ended.returncode == 0
        return status.Status.SUCCESS if is_well else status.Status.FAILURE

    monkeypatch.setattr(docker_task_handler.DockerTaskHandler, "run", run)
    mend_loops(monkeypatch)
    local.init(
        runner=local.DockerRunner(), pipeline_root=str(tmp_path / "root"), raise_on_error=False
    )
    root = logging.getLogger()
    handlers = list(root.handlers)
    yield done
    root.handlers[:] = handlers  # kfp.local leaves one that writes to this test's own output


def run_pipeline(name: str, **parameters: Any) -> None:
    module = load_pipeline(name)
    steps = replace(module.PIPELINE_DEFAULTS.steps, retry=None)  # kfp.local waits between two
    module.make_pipeline(replace(module.PIPELINE_DEFAULTS, steps=steps, parallelism=2))(
        **parameters
    )


def latest(root: Path, task: str, name: str) -> str:
    """What a task of the latest pipeline left."""
    paths = root.glob(f"*/{task}/{name}")
    return max(paths, key=lambda path: path.stat().st_mtime).read_text()


def artifacts(root: Path, task: str) -> dict[str, Any]:
    return json.loads(latest(root, task, "executor_output.json"))["artifacts"]


@pytest.mark.filterwarnings("ignore:Task 'batch-inference'. settings:UserWarning")
def test_a_job_in_four_shards_goes_through_all_steps_and_two_pipelines(tmp_path, tasks, capsys):
    job = make_job(tmp_path)
    run_pipeline("vlm_batch_inference_pipeline", num_shards=4, gate="accuracy >= 0", **job)
    assert tasks == [
        ("vlmflow plan", 0),
        *[("vlmflow run", 0)] * 4,
        ("vlmflow merge", 0),
        ("vlmflow evaluate", 0),
        ("vlmflow compare", 0),
    ]
    assert "Task \x1b[96m'importer'\x1b[0m finished with status \x1b[92mSUCCESS" in _logged(capsys)
    merged = artifacts(tmp_path / "root", "merge-report")
    (results,) = merged["results"]["artifacts"]
    assert results["uri"] == f"{job['output']}/shapes/results/"
    assert results["metadata"]["succeeded"] == 8
    root = tmp_path / "root"
    assert latest(root, "evaluate", "accuracy") == "0.0"
    assert latest(root, "evaluate", "scored") == "8"
    assert Path(latest(root, "evaluate", "evaluation_uri")).is_file()
    assert artifacts(root, "evaluate")["metrics"]["artifacts"][0]["metadata"] == {
        "exact_match": 0.0,
        "records": 8,
    }
    assert latest(root, "compare-gate", "is_passed") == "true"
    page = Path(artifacts(root, "compare-gate")["report"]["artifacts"][0]["uri"])
    assert b"<html" in page.read_bytes()
    # Two runs that are done, and a gate between them that does not hold: the alert fails.
    tasks.clear()
    run = f"{job['output']}/shapes"
    run_pipeline("vlm_compare_pipeline", baseline=run, candidate=run, gate="accuracy >= 0.5")
    assert tasks == [("vlmflow evaluate", 0), ("vlmflow compare", 0), ("python -c", 1)]
    assert latest(root, "compare-gate", "is_passed") == "false"
    assert f"{run} is worse than it may be: accuracy >= 0.5: not passed" in _logged(capsys)


def test_a_plan_that_fails_ends_the_pipeline(tmp_path, tasks):
    job = make_job(tmp_path) | {"manifest": f"{tmp_path}/none.jsonl"}
    run_pipeline("vlm_batch_inference_pipeline", **job)
    assert tasks == [("vlmflow plan", 2)]


def _logged(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    return out + err
