"""Jobs for operators to run, and stand-ins for an interpreter that behave as a test wants."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.job_processes import JOB_PYTHON


def make_job(tmp_path: Path, prompts: list[str] | int = 20, **more: Any) -> dict[str, Any]:
    """Arguments of an operator: so many records for the fake engine, which tell no MLflow."""
    texts = [f"question {n}" for n in range(prompts)] if isinstance(prompts, int) else prompts
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    manifest = tmp_path / "shapes.jsonl"
    lines = [json.dumps({"id": f"r{n}", "prompt": text}) for n, text in enumerate(texts)]
    manifest.write_text("\n".join(lines))
    return {
        "manifest": str(manifest),
        "model": str(model),
        "output": str(tmp_path / "out"),
        "tracking": {"enabled": False},
        "python": str(JOB_PYTHON),
    } | more


def stand_in(tmp_path: Path, script: str) -> str:
    """An interpreter that is a shell script: whatever it is asked to run, it does this."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def wait_until(holds: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """What `holds` returns, as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return value


def processes_with(marker: str) -> list[psutil.Process]:
    """Processes in whose command line or environment a marker stands, but for our own."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == psutil.Process().pid or process.status() == psutil.STATUS_ZOMBIE:
                continue
            told = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if any(marker in text for text in told):
            found.append(process)
    return found
