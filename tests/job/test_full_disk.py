"""A disk that is really full: a tmpfs of a few KiB in a mount namespace of the job's own."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.job.jobs import FAKE_ENGINE, committed_ordinals, make_model, read_lines, records
from tests.job.jobs import write_manifest as write
from vlmflow.job.engine_process import COMMAND_VARIABLE

pytestmark = pytest.mark.process

NUM_RECORDS = 400
SMALL_DISK = "mount -t tmpfs -o size=640k small"


def namespace() -> list[str]:
    """How a shell may mount something that only it sees; skips the test where it may not."""
    command = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "-rm"]
    try:
        tried = subprocess.run([*command, "true"], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare(1), which a small disk is mounted with")
    if tried.returncode:
        pytest.skip("no mount namespace may be made here, in which a small disk is mounted")
    return [*command, "sh", "-c"]


def run_twice(tmp_path: Path, small: Path, **environment: str) -> list[str]:
    """Run a job while the small disk is nearly full, and again with room; return what it said.

    The job's output is copied to tmp_path/copy in the end.
    """
    shell = namespace()
    small.mkdir(exist_ok=True)
    manifest = write(tmp_path / "m.jsonl", records(NUM_RECORDS))
    job = shlex.join(
        [
            sys.executable, "-m", "vlmflow", "run", "--manifest", str(manifest),
            "--model", str(make_model(tmp_path / "model")), "--output", str(tmp_path / "out"),
            "--no-mlflow", "--commit-seconds", "0.05",
        ]
    )  # fmt: skip
    script = f"""
        {SMALL_DISK} {small} || exit 77
        head -c 600k /dev/zero > {small}/filler
        {job} 2> {tmp_path}/first > {tmp_path}/null; echo "exit code $?" >> {tmp_path}/first
        rm {small}/filler
        mount -o remount,size=32m {small}
        {job} 2> {tmp_path}/second > {tmp_path}/null; echo "exit code $?" >> {tmp_path}/second
        cp -r {tmp_path}/out {tmp_path}/copy
    """
    done = subprocess.run(
        [*shell, script],
        env={
            **os.environ,
            COMMAND_VARIABLE: FAKE_ENGINE,
            "FAKE_ENGINE_SECONDS": "0.001",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            **environment,
        },
        capture_output=True,
        text=True,
    )
    if done.returncode == 77:
        pytest.skip("no disk may be mounted in a namespace here")
    assert done.returncode == 0, done.stderr
    return [(tmp_path / name).read_text() for name in ("first", "second")]


def check(tmp_path: Path) -> None:
    output = f"{tmp_path}/copy/m"
    assert committed_ordinals(output) == dict.fromkeys(range(NUM_RECORDS), 1)
    assert [x["id"] for x in read_lines(output, "results")] == [f"r{n}" for n in range(NUM_RECORDS)]


def test_an_output_folder_without_room_ends_the_job_and_with_room_it_goes_on(tmp_path):
    first, second = run_twice(tmp_path, tmp_path / "out")
    assert "No space left on device" in first
    assert first.endswith("exit code 75\n") and "Traceback" not in first
    assert second.endswith("exit code 0\n"), second
    check(tmp_path)


def test_a_temporary_folder_without_room_is_told_in_a_sentence(tmp_path):
    small = tmp_path / "small"
    first, second = run_twice(tmp_path, small, TMPDIR=str(small))
    assert f"cannot write in {small}: No space left on device; set TMPDIR to a folder" in first
    assert first.endswith("exit code 75\n") and "Traceback" not in first
    assert second.endswith("exit code 0\n"), second
    check(tmp_path)
