"""The demo's manifest, and the main job on it: real S3 protocol, real engine, real MLflow."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.demo import CHECKPOINT
from examples.shapes.manifest import write_manifest

ROOT = Path(__file__).parents[2]
BAD = {
    "missing-image": ("fetch", "image_not_found"),
    "corrupt-image": ("decode", "image_corrupt"),
    "truncated-image": ("decode", "image_truncated"),
    "long-prompt": ("prepare", "prompt_too_long"),
    "scene-000-describe": ("manifest", "duplicate_id"),
    None: ("manifest", "invalid_line"),
}


def read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_the_manifest_has_many_questions_and_six_bad_records(tmp_path):
    lines = write_manifest(tmp_path).read_text().splitlines()
    records = [json.loads(line) for line in lines[:-1]]
    assert len(lines) == 262
    assert len({image for record in records[:256] for image in record["images"]}) == 64
    assert all((tmp_path / image).is_file() for r in records[:256] for image in r["images"])
    with pytest.raises(ValueError):
        json.loads(lines[-1])


@pytest.mark.process
def test_the_demo_runs_to_its_end(tmp_path):
    """In a copy of its own folder, as `make demo` runs it."""
    process = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == 0, process.stderr
    output = tmp_path / "build/demo/output"
    report = json.loads((output / "report.json").read_text())
    counts = report["counts"]
    assert (counts["records"], counts["succeeded"]) == (262, 256)
    assert (counts["failed"], counts["skipped"]) == (5, 1)
    assert report["accuracy"]["exact_match"] >= 0.95
    assert report["mlflow"]["run_id"]
    assert (output / "_SUCCESS.json").is_file()
    page = (output / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/") == 50, "samples with their pictures"
    failures = [json.loads(line) for line in read_lines(output / "failures/00000.jsonl")]
    assert {f["id"]: (f["error"]["stage"], f["error"]["class"]) for f in failures} == BAD
    for word in ("exact match", "MLflow run", "mlflow ui --backend-store-uri", "output tokens/s"):
        assert word in process.stdout


@pytest.mark.process
def test_a_job_with_the_real_engine_killed_in_its_middle_ends_as_if_nothing_had_been(tmp_path):
    manifest = write_manifest(tmp_path / "input")

    def start(name: str) -> subprocess.Popen:
        return subprocess.Popen(
            [
                sys.executable, "-m", "vlmflow", "run", "--manifest", str(manifest),
                "--model", str(CHECKPOINT), "--output", str(tmp_path / name), "--no-mlflow",
                "--dtype", "float32", "--commit-seconds", "0.05", "--max-batch-size", "4",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        )  # fmt: skip

    def texts(name: str) -> dict[str, str]:
        lines = read_lines(tmp_path / name / "manifest/results/00000.jsonl")
        return {record["id"]: record["text"] for record in map(json.loads, lines)}

    killed = start("killed")
    shard = tmp_path / "killed/manifest/_work/shards/00000"
    deadline = time.monotonic() + 120
    while len(list(shard.glob("commit-*"))) < 3:
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed/manifest/results").exists()
    for name in ("killed", "whole"):
        process = start(name)
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    assert texts("killed") == texts("whole")
    assert len(texts("killed")) == 256
