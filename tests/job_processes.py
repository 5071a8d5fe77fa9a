"""How tests of the orchestrators' faces run jobs: by the interpreter of `.venv`, which has what
a job needs, and with the fake engine in place of a model.
"""

import os
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [str(ROOT / name) for name in ("engine", "components", "")]
JOB_PYTHON = ROOT / ".venv" / "bin" / "python"
FAKE_ENGINE = shlex.join([str(JOB_PYTHON), str(ROOT / "tests" / "job" / "fake_engine.py")])


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
