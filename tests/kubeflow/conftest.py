"""Tests that run in .venv-kubeflow; where kfp is missing there is nothing to collect.

Steps run as they do in a container, but by the interpreter of `.venv`, which has what a job needs,
and with the fake engine in place of a model.
"""

import os
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [str(ROOT / name) for name in ("engine", "components", "")]
JOB_PYTHON = ROOT / ".venv" / "bin" / "python"
FAKE_ENGINE = shlex.join([str(JOB_PYTHON), str(ROOT / "tests" / "job" / "fake_engine.py")])

if find_spec("kfp") is None:
    collect_ignore_glob = ["*"]


@pytest.fixture
def job_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let processes find this tree, the fake engine, and caches of nobody else; its log of
    answers is returned.
    """
    log = tmp_path / "asked"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(SOURCES))
    monkeypatch.setenv("VLMFLOW_ENGINE_COMMAND", FAKE_ENGINE)
    monkeypatch.setenv("FAKE_ENGINE_LOG", str(log))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return log


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's server and image."""
    for name in list(os.environ):
        if name.startswith(("KF_PIPELINES_", "VLMFLOW_IMAGE")):
            monkeypatch.delenv(name)
