"""A worker that is paused until others take it for dead, and wakes when they have done its work."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.job.chaos.faults import wait_until
from tests.job.jobs import FAKE_ENGINE, committed_ordinals, make_model, read_lines, records
from vlmflow.job.engine_process import COMMAND_VARIABLE
from vlmflow.job.store import StoreOpener

pytestmark = [pytest.mark.process, pytest.mark.slow]

NUM_RECORDS = 600


def own_process_namespace() -> list[str]:
    """What makes a process a stranger to those outside: its claims name another boot."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if os.getuid() != 0:
        command[1:1] = ["-r"]
    try:
        tried = subprocess.run([*command, "true"], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare(1), which makes a stranger of a process")
    if tried.returncode:
        pytest.skip("no process namespace may be made here")
    return command


@pytest.mark.timeout(300)
def test_a_worker_that_wakes_after_its_lease_commits_nothing_twice(
    tmp_path, bucket, s3_endpoint, s3_client
):
    stranger = own_process_namespace()
    body = "\n".join(json.dumps(line) for line in records(NUM_RECORDS))
    s3_client.put_object(Bucket=bucket, Key="m.jsonl", Body=body.encode())
    output = f"s3://{bucket}/out/m"
    store = StoreOpener(s3_endpoint).open(output)
    command = [
        sys.executable, "-m", "vlmflow", "run", "--manifest", f"s3://{bucket}/m.jsonl",
        "--output", f"s3://{bucket}/out", "--model", str(make_model(tmp_path / "model")),
        "--endpoint-url", s3_endpoint, "--no-mlflow", "--commit-seconds", "0.1", "--worker",
    ]  # fmt: skip
    environment = {
        **os.environ,
        COMMAND_VARIABLE: FAKE_ENGINE,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "FAKE_ENGINE_SECONDS": "0.01",
    }

    def start(prefix: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*prefix, *command], env=environment, text=True, stderr=subprocess.PIPE
        )

    def num_commits() -> int:
        return len(list(store.list("_work/shards/00000/commit-")))

    first = start([])
    wait_until(lambda: num_commits() >= 2, 60)
    sleeping = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    for process in sleeping:
        process.send_signal(signal.SIGSTOP)
    done_before = len(committed_ordinals(output, s3_endpoint))
    assert 0 < done_before < NUM_RECORDS
    begin = time.monotonic()
    second = start(stranger)
    wait_until(lambda: any("claim-000001" in k for k in store.list("_work/shards/")), 150)
    assert time.monotonic() - begin > 55, "taken over before the lease was over"
    wait_until(
        lambda: num_commits() > 2 and len(committed_ordinals(output, s3_endpoint)) > done_before, 60
    )
    # Both work now, one of them on what the other does.
    for process in sleeping:
        process.send_signal(signal.SIGCONT)
    for worker in (first, second):
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    assert committed_ordinals(output, s3_endpoint) == dict.fromkeys(range(NUM_RECORDS), 1)
    assert len(read_lines(output, "results", s3_endpoint)) == NUM_RECORDS
    epochs = {json.loads(store.read(k))["epoch"] for k in store.list("_work/shards/00000/commit-")}
    assert epochs == {0, 1}
