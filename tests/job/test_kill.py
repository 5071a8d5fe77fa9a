"""Real processes, really killed: nothing is lost and nothing is committed twice."""

import json
import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.job.jobs import committed_ordinals, make_model, read_lines, records, start_job
from vlmflow.job.progress_file import read_attempts
from vlmflow.job.store import StoreOpener

pytestmark = pytest.mark.process

NUM_RECORDS = 1000
EVERY_RECORD = dict.fromkeys(range(NUM_RECORDS), 1)


@pytest.fixture
def job(tmp_path, bucket, s3_endpoint, s3_client) -> "Job":
    body = "\n".join(json.dumps(line) for line in records(NUM_RECORDS))
    s3_client.put_object(Bucket=bucket, Key="m.jsonl", Body=body.encode())
    return Job(tmp_path, bucket, s3_endpoint)


class Job:
    """One job on S3, started as often as it takes."""

    def __init__(self, tmp_path: Path, bucket: str, endpoint: str) -> None:
        self.output = f"s3://{bucket}/out/m"
        self.endpoint = endpoint
        self._store = StoreOpener(endpoint).open(self.output)
        self._cache = str(tmp_path / "cache")
        self._arguments = [
            "--manifest", f"s3://{bucket}/m.jsonl", "--output", f"s3://{bucket}/out",
            "--model", str(make_model(tmp_path / "model")), "--endpoint-url", endpoint,
            "--no-mlflow", "--commit-seconds", "0.1",
        ]  # fmt: skip

    def start(self, *more: str, seconds: float = 0.004):
        return start_job(
            [*self._arguments, *more],
            FAKE_ENGINE_SECONDS=str(seconds),
            XDG_CACHE_HOME=self._cache,
        )

    def num_commits(self) -> int:
        return len(list(self._store.list("_work/shards/00000/commit-")))

    def wait_for_commits(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while self.num_commits() < count:
            assert time.monotonic() < deadline, "no commit in a minute"
            time.sleep(0.02)

    def texts(self) -> dict[str, str]:
        return {r["id"]: r["text"] for r in read_lines(self.output, "results", self.endpoint)}

    def finish(self) -> None:
        process = self.start(seconds=0)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def engine_of(process) -> psutil.Process:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in psutil.Process(process.pid).children():
            if "fake_engine" in " ".join(child.cmdline()):
                return child
        time.sleep(0.02)
    raise AssertionError("no engine in a minute")


def test_ten_kills_at_random_moments_lose_nothing_and_commit_nothing_twice(job):
    moments = random.Random(11)
    num_killed = 0
    for kill in range(10):
        process = job.start()
        # Some die while they start, most while they work.
        if kill % 3:
            job.wait_for_commits(job.num_commits() + 1)
        time.sleep(moments.uniform(0, 0.2))
        num_killed += process.poll() is None
        process.kill()
        process.communicate()
    assert num_killed == 10, "the job was done before it was killed so often"
    job.finish()
    assert committed_ordinals(job.output, job.endpoint) == EVERY_RECORD
    assert len(job.texts()) == NUM_RECORDS
    report = json.loads(job._store.read("report.json"))
    assert report["counts"]["succeeded"] == NUM_RECORDS
    statuses = [attempt["status"] for attempt in report["attempts"]]
    assert statuses[-1] == "complete"
    assert len(statuses) > 5 and set(statuses[:-1]) == {"killed"}


def test_killing_the_engine_alone_loses_nothing(job):
    process = job.start()
    for _ in range(3):
        engine = engine_of(process)
        job.wait_for_commits(job.num_commits() + 1)
        engine.kill()
        engine.wait()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert errors.count("the engine died (killed by SIGKILL)") == 3
    assert committed_ordinals(job.output, job.endpoint) == EVERY_RECORD
    assert len(job.texts()) == NUM_RECORDS  # nobody was blamed for a kill from outside


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_commits_and_exits_75(job, number):
    process = job.start()
    job.wait_for_commits(2)
    os.kill(process.pid, number)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "records done; the same command goes on" in errors
    assert "Traceback" not in errors
    done = committed_ordinals(job.output, job.endpoint)
    assert 0 < len(done) < NUM_RECORDS
    [attempt] = read_attempts(job._store)
    assert attempt["status"] == "interrupted"
    assert attempt["done"] == len(done)
    progress = json.loads(job._store.read("progress.json"))
    assert (progress["done"], progress["records"]) == (len(done), NUM_RECORDS)
    assert (progress["workers"], progress["status"]) == (0, "interrupted")
    job.finish()
    assert committed_ordinals(job.output, job.endpoint) == EVERY_RECORD


def test_a_killed_job_leaves_no_engine_behind(job):
    process = job.start()
    engine = engine_of(process)
    job.wait_for_commits(1)
    process.kill()
    process.communicate()
    engine.wait(timeout=10)
    assert not engine.is_running()


def test_a_second_worker_is_sent_away_while_the_first_one_lives(job):
    first = job.start(seconds=0.02)
    job.wait_for_commits(1)
    second = job.start()
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 75
    assert f"process {first.pid} on" in errors and "is working on this job" in errors
    first.terminate()
    first.communicate(timeout=60)
