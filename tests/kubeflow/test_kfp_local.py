"""The command that runs a compiled pipeline here: what it says before anything runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.job_processes import ROOT, SOURCES
from tools.kubeflow_files import COMPILED


def run(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    parameters = folder / "parameters.json"
    parameters.write_text(json.dumps({"baseline": "a", "candidate": "b", "gate": ""}))
    pipeline = COMPILED / "vlm_compare_pipeline.yaml"
    return subprocess.run(
        [sys.executable, "-m", "tools.kfp_local", str(pipeline), str(parameters), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES), **environment},
    )


def test_a_variable_that_is_not_there_is_named(tmp_path):
    done = run(tmp_path, "--env", "NOT_THERE")
    assert done.returncode == 2
    assert "tools.kfp_local: --env NOT_THERE: there is no such variable" in done.stderr


def test_an_engine_that_does_not_answer_is_a_sentence(tmp_path):
    where = f"unix://{tmp_path}/nobody.sock"
    done = run(tmp_path, "--root", str(tmp_path / "root"), DOCKER_HOST=where)
    assert done.returncode == 2
    assert done.stderr.startswith(f"tools.kfp_local: {where} does not answer or refuses: ")
    assert "Traceback" not in done.stderr
