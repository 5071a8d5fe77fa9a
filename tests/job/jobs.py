"""Runs jobs with the fake engine, in this process or as the command line does."""

import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from vlmflow.job.engine_process import COMMAND_VARIABLE
from vlmflow.job.loop import StopSignal
from vlmflow.job.progress import LineDisplay
from vlmflow.job.run import Assignment, JobRun
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import StoreOpener

ALL = Assignment()
FAKE_ENGINE = shlex.join([sys.executable, str(Path(__file__).with_name("fake_engine.py"))])


def make_model(folder: Path) -> Path:
    """What the job looks at of a checkpoint: its files' digests."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    return folder


def write_manifest(path: Path, lines: list[Any]) -> Path:
    path.write_text(
        "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    )
    return path


def records(count: int) -> list[dict[str, Any]]:
    return [{"id": f"r{n}", "prompt": f"question {n}", "expected": str(n)} for n in range(count)]


def make_spec(tmp_path: Path, manifest: Path | str, output: Path | str, **spec: Any) -> JobSpec:
    """The spec of a job that tells no MLflow."""
    values = {
        "manifest": str(manifest),
        "model": str(make_model(tmp_path / "model")),
        "output": str(output),
        "tracking": {"enabled": False},
    } | spec
    return JobSpec.parse(values)


def run_job(
    tmp_path: Path,
    manifest: Path | str,
    output: Path | str,
    assignment: Assignment = ALL,
    **spec: Any,
) -> dict:
    """Run a job to its end in this process; the environment names the fake engine."""
    job = JobRun(
        make_spec(tmp_path, manifest, output, **spec),
        display=LineDisplay(),
        stop=StopSignal(),
        assignment=assignment,
    )
    return job.run()


def start_job(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    """Start `vlmflow run` in a process of its own, with the fake engine unless told otherwise."""
    return subprocess.Popen(
        [sys.executable, "-m", "vlmflow", "run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, COMMAND_VARIABLE: FAKE_ENGINE, **environment},
    )


def read_lines(output: str, kind: str, endpoint: str | None = None) -> list[dict[str, Any]]:
    """The lines of a job's results or failures, in the order of its files."""
    store = StoreOpener(endpoint).open(output)
    return [
        json.loads(line) for key in store.list(f"{kind}/") for line in store.read(key).splitlines()
    ]


def committed_ordinals(output: str, endpoint: str | None = None) -> Counter[int]:
    """How often each record stands in a part that a commit names: straight from the log."""
    store = StoreOpener(endpoint).open(output)
    counts: Counter[int] = Counter()
    for key in store.list("_work/"):
        shard, _, name = key.rpartition("/")
        if not name.startswith("commit-"):
            continue
        entry = json.loads(store.read(key))
        if entry["part"] is None:
            continue
        part = f"{shard}/part-{entry['epoch']:06d}-{entry['part']:08d}.jsonl"
        counts.update(json.loads(line)["ordinal"] for line in store.read(part).splitlines())
    return counts
