"""Finished jobs to evaluate: the fake engine's, with answers that a test has laid into them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.job.jobs import FAKE_ENGINE, run_job, write_manifest
from vlmflow.job.engine_process import COMMAND_VARIABLE


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(COMMAND_VARIABLE, FAKE_ENGINE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)


def lay_answers(output: Path, answers: dict[str, str]) -> None:
    """Let records of a finished job have other answers than they had, by id."""
    for file in (output / "results").glob("*.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            line["text"] = answers.get(line["id"], line["text"])
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))


Finished = Callable[..., Path]


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    """Runs a job over lines and lays answers into it; returns its output folder."""

    def make(
        lines: list[Any], answers: dict[str, str] | None = None, *, name: str = "out", **spec: Any
    ) -> Path:
        manifest = write_manifest(tmp_path / f"{spec.pop('manifest', 'm')}.jsonl", lines)
        spec = {"limits": {"max_failure_rate": 1.0}} | spec
        run_job(tmp_path, manifest, tmp_path / name, **spec)
        output = tmp_path / name / manifest.stem
        lay_answers(output, answers or {})
        return output

    return make
