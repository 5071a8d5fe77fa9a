"""Several processes beside one another on one job, and what happens when some are killed."""

import json
import random
import signal
import time

import pytest

from tests.job.jobs import committed_ordinals, make_model, read_lines, records, start_job
from vlmflow.job.store import StoreOpener

pytestmark = pytest.mark.process

NUM_RECORDS = 1200
NUM_SHARDS = 8
NUM_WORKERS = 4


@pytest.fixture
def arguments(tmp_path, bucket, s3_endpoint, s3_client) -> list[str]:
    """A job on S3, cut into shards."""
    body = "\n".join(json.dumps(line) for line in records(NUM_RECORDS))
    s3_client.put_object(Bucket=bucket, Key="m.jsonl", Body=body.encode())
    return [
        "--manifest", f"s3://{bucket}/m.jsonl", "--output", f"s3://{bucket}/out",
        "--model", str(make_model(tmp_path / "model")), "--endpoint-url", s3_endpoint,
        "--no-mlflow", "--commit-seconds", "0.1", "--num-shards", str(NUM_SHARDS),
    ]  # fmt: skip


@pytest.fixture
def start_worker(arguments, tmp_path):
    """Starts a worker; those that a failed test leaves are killed."""
    started = []

    def start():
        environment = {"FAKE_ENGINE_SECONDS": "0.003", "XDG_CACHE_HOME": str(tmp_path / "c")}
        started.append(start_job([*arguments, "--worker"], **environment))
        return started[-1]

    yield start
    for worker in started:
        if worker.returncode is None:
            worker.kill()
            worker.communicate()


def check_output(bucket, endpoint) -> dict:
    output = f"s3://{bucket}/out/m"
    assert committed_ordinals(output, endpoint) == dict.fromkeys(range(NUM_RECORDS), 1)
    ids = [line["id"] for line in read_lines(output, "results", endpoint)]
    assert ids == [f"r{n}" for n in range(NUM_RECORDS)]
    report: dict = json.loads(StoreOpener(endpoint).open(output).read("report.json"))
    assert report["counts"]["succeeded"] == NUM_RECORDS
    return report


def test_four_workers_share_the_shards_and_all_end_well(start_worker, bucket, s3_endpoint):
    workers = [start_worker() for _ in range(NUM_WORKERS)]
    for worker in workers:
        out, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
        assert out.split()[:2] == ["records", str(NUM_RECORDS)]
    report = check_output(bucket, s3_endpoint)
    assert len(report["attempts"]) == NUM_SHARDS  # nobody did what another did
    assert {attempt["status"] for attempt in report["attempts"]} == {"complete"}


def test_workers_killed_at_random_are_made_up_for_by_the_others(start_worker, bucket, s3_endpoint):
    moments = random.Random(5)
    store = StoreOpener(s3_endpoint).open(f"s3://{bucket}/out/m")
    workers = [start_worker() for _ in range(NUM_WORKERS)]
    deadline = time.monotonic() + 120
    for _ in range(3):
        before = sum(1 for key in store.list("_work/shards/") if "/commit-" in key)
        while sum(1 for key in store.list("_work/shards/") if "/commit-" in key) <= before:
            assert time.monotonic() < deadline, "no commit in two minutes"
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.1))
        victim = workers.pop(moments.randrange(len(workers)))
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        workers.append(start_worker())
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    report = check_output(bucket, s3_endpoint)
    assert "killed" in {attempt["status"] for attempt in report["attempts"]}
