"""A worker on each GPU of a machine: all of them are used, and one that falls loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.job.jobs import (
    committed_ordinals,
    make_model,
    make_spec,
    read_lines,
    records,
    start_job,
    write_manifest,
)
from vlmflow.job import gpus
from vlmflow.job.errors import SpecError

NUM_RECORDS = 120


class Library:
    """NVML of a machine with so many GPUs."""

    def __init__(self, count: int) -> None:
        self._count = count

    def names(self) -> list[str]:
        return ["GPU"] * self._count


@pytest.fixture
def machine(monkeypatch):
    """A machine with four GPUs, none of them hidden."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "Nvml", lambda: Library(4))


def test_all_or_some_or_named_gpus(machine, monkeypatch):
    assert gpus.find_gpus("all") == ["0", "1", "2", "3"]
    assert gpus.find_gpus("2") == ["0", "1"]
    assert gpus.find_gpus("1,3") == ["1", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8f3a")
    assert gpus.find_gpus("all") == ["2", "GPU-8f3a"]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("5", "--gpus 5, but there are 4"),
        ("0", "must be all, how many, or several of them by name"),
        ("-1", "must be all, how many"),
        ("many", "got 'many'"),
        ("1,1", "names a GPU twice"),
    ],
)
def test_what_names_no_gpus_is_refused_in_a_sentence(asked, sentence, machine):
    with pytest.raises(SpecError, match=sentence):
        gpus.find_gpus(asked)


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SpecError, match="no NVIDIA GPU here"):
        gpus.find_gpus("all")


def test_a_manifest_is_cut_into_several_shards_a_gpu_unless_it_says_how_many(tmp_path):
    spec = make_spec(tmp_path, "m.jsonl", tmp_path)
    assert gpus.for_gpus(spec, 3).num_shards == 12
    assert gpus.for_gpus(spec, 1).num_shards == 1
    assert gpus.for_gpus(make_spec(tmp_path, "m.jsonl", tmp_path, num_shards=5), 3).num_shards == 5


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    manifest = write_manifest(tmp_path / "m.jsonl", records(NUM_RECORDS))
    return [
        "--manifest", str(manifest), "--output", str(tmp_path / "out"), "--no-mlflow",
        "--model", str(make_model(tmp_path / "model")), "--commit-seconds", "0.1",
    ]  # fmt: skip


def workers_of(process: subprocess.Popen[str]) -> dict[str, int]:
    """Process ids of the workers, by the GPU that each sees."""
    found = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        shown = dict(variable.partition(b"=")[::2] for variable in variables if variable)
        found[shown[b"CUDA_VISIBLE_DEVICES"].decode()] = int(child)
    return found


def wait_for_workers(process: subprocess.Popen[str], output: Path) -> dict[str, int]:
    """Until something is committed."""
    deadline = time.monotonic() + 60
    while not list(output.glob("m/_work/shards/*/commit-*.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    return workers_of(process)


def check_done(output: Path) -> None:
    assert committed_ordinals(str(output / "m")) == dict.fromkeys(range(NUM_RECORDS), 1)
    assert len(read_lines(str(output / "m"), "results")) == NUM_RECORDS


@pytest.mark.process
def test_each_gpu_has_a_worker_and_one_that_is_killed_leaves_its_shards_to_the_others(
    arguments, tmp_path
):
    process = start_job([*arguments, "--gpus", "0,1,5"], FAKE_ENGINE_SECONDS="0.05")
    workers = wait_for_workers(process, tmp_path / "out")
    assert sorted(workers) == ["0", "1", "5"]
    os.kill(workers["1"], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count("succeeded") == 1 and str(NUM_RECORDS) in out
    assert "GPU 0: " in err and "the worker of GPU 1 ended with exit code -9" in err
    check_done(tmp_path / "out")


@pytest.mark.process
def test_told_to_stop_it_ends_resumably_and_the_same_command_goes_on(arguments, tmp_path):
    command = [*arguments, "--gpus", "0,1"]
    process = start_job(command, FAKE_ENGINE_SECONDS="0.1")
    workers = wait_for_workers(process, tmp_path / "out")
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "none of the 2 workers has seen the job to its end" in err
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers.values())
    process = start_job(command)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    check_done(tmp_path / "out")


@pytest.mark.process
def test_workers_do_not_outlive_who_started_them(arguments, tmp_path):
    process = start_job([*arguments, "--gpus", "0,1"], FAKE_ENGINE_SECONDS="0.1")
    workers = wait_for_workers(process, tmp_path / "out")
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while any(is_running(pid) for pid in workers.values()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.process
def test_bad_input_is_told_with_its_exit_code(arguments, tmp_path):
    os.unlink(tmp_path / "m.jsonl")
    done = subprocess.run(
        [sys.executable, "-m", "vlmflow", "run", *arguments, "--gpus", "0,1"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    refused = subprocess.run(
        [sys.executable, "-m", "vlmflow", "run", *arguments, "--gpus", "0,1", "--fork"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert refused.returncode == 2
    assert "--gpus does not go with --rerun-failed or --fork" in refused.stderr
    assert json.dumps(refused.stderr).count("vlmflow:") == 1
