"""What the tests say and see of the one Airflow that runs: jobs, their objects, their processes."""

import json
import os
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3

from tests.job.faulty_tcp import FaultyTcp
from tools.airflow_api import AirflowApi
from tools.airflow_connections import ACCESS_KEY, SECRET_KEY
from tools.airflow_standalone import Standalone

ROOT = Path(__file__).parents[3]
DAGS = ROOT / "dags"
ENGINE_PYTHON = ROOT / ".venv/bin/python"
BUCKET = "demo"  # of examples/demo.py
DAG = "vlm_batch_inference"
BAD_IMAGE = "corrupt-image"


@dataclass(frozen=True)
class World:
    """All that runs."""

    airflow: Standalone
    s3: str  # endpoint, as these tests use it
    way: FaultyTcp  # to it, as jobs and Airflow use it
    mlflow: str  # tracking server
    client: Any = field(init=False)  # of S3

    def __post_init__(self) -> None:
        client = boto3.client(
            "s3",
            endpoint_url=self.s3,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )
        object.__setattr__(self, "client", client)

    @property
    def api(self) -> AirflowApi:
        return self.airflow.api

    def write_manifest(self, name: str, num_good: int) -> dict[str, str]:
        """Put some of the demo's records and one with a bad image into shapes/NAME.jsonl.

        Returns the expected answers by id.
        """
        lines = self.read("shapes/manifest.jsonl").decode().splitlines()
        records = [json.loads(line) for line in lines[:-1]]
        good = records[:num_good]
        bad = next(record for record in records if record["id"] == BAD_IMAGE)
        middle = num_good // 2
        chosen = [*good[:middle], bad, *good[middle:]]
        body = "".join(json.dumps(record) + "\n" for record in chosen).encode()
        self.client.put_object(Bucket=BUCKET, Key=f"shapes/{name}.jsonl", Body=body)
        return {record["id"]: record["expected"] for record in good}

    def read(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def keys(self, prefix: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def lines(self, prefix: str) -> list[dict[str, Any]]:
        """The lines of all objects below a prefix, in order."""
        return [
            json.loads(line) for key in self.keys(prefix) for line in self.read(key).splitlines()
        ]

    def commits(self, job: str) -> Counter[int]:
        """How often each record stands in a part that a commit names: straight from the log."""
        counts: Counter[int] = Counter()
        for key in self.keys(f"results/{job}/_work/"):
            shard, _, name = key.rpartition("/")
            if not name.startswith("commit-"):
                continue
            entry = json.loads(self.read(key))
            if entry["part"] is not None:
                part = f"{shard}/part-{entry['epoch']:06d}-{entry['part']:08d}.jsonl"
                counts.update(json.loads(line)["ordinal"] for line in self.read(part).splitlines())
        return counts

    def check_answers(self, job: str, expected: dict[str, str]) -> None:
        """Each record was answered once and rightly, in order, and the bad one was set aside."""
        results = self.lines(f"results/{job}/results/")
        assert [record["id"] for record in results] == list(expected)
        assert {record["id"]: record["text"] for record in results} == expected
        failures = self.lines(f"results/{job}/failures/")
        found = [(record["id"], record["error"]["class"]) for record in failures]
        assert found == [(BAD_IMAGE, "image_corrupt")]
        commits = self.commits(job)
        assert sorted(commits) == list(range(len(expected) + 1))
        assert set(commits.values()) == {1}

    def processes(self, run_id: str, task_id: str, index: int = -1) -> list[int]:
        """The processes that a task instance started, and theirs; not the worker's own."""
        wanted = [f"AIRFLOW_CTX_DAG_RUN_ID={run_id}", f"AIRFLOW_CTX_TASK_ID={task_id}"]
        if index >= 0:
            wanted.append(f"AIRFLOW_CTX_MAP_INDEX={index}")
        found = []
        for process_id in self.airflow.processes():
            try:
                environment = Path(f"/proc/{process_id}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if all(variable.encode() in environment for variable in wanted):
                found.append(process_id)
        return found

    def mlflow_run(self, run_id: str) -> dict[str, Any]:
        """A run, as the tracking server tells it."""
        with fetch(f"{self.mlflow}/api/2.0/mlflow/runs/get?run_id={run_id}") as answer:
            return dict(json.load(answer)["run"])

    def trigger(self, run_id: str, **conf: Any) -> None:
        """Start the main DAG: the job has the run's id as its name."""
        self.api.wait_for_dag(DAG, seconds=120)
        self.api.unpause(DAG)
        exact = {"engine": {"dtype": "float32"}}
        self.api.trigger(DAG, run_id, {"name": run_id, "max_new_tokens": 96, **exact, **conf})

    def wait_for_shards(self, run_id: str, seconds: float) -> list[int]:
        """Wait for the tasks that run a job, and end the run there: what comes after is tested by
        itself. Whoever seals the last shard writes results and report. Returns the tries.
        """

        def states() -> set[str]:
            found = {task["state"] for task in self.api.tasks(DAG, run_id, "infer")}
            assert not found & {"failed", "upstream_failed"}, self.explain(DAG, run_id)
            return found

        wait_until(lambda: states() == {"success"}, seconds, "all shards")
        self.api.call("PATCH", f"/dags/{DAG}/dagRuns/{run_id}", {"state": "failed"})
        return [task["try_number"] for task in self.api.tasks(DAG, run_id, "infer")]

    def explain(self, dag_id: str, run_id: str) -> str:
        """What to read when a run did not end as it should: the logs of what failed."""
        told = []
        for task in self.api.tasks(dag_id, run_id):
            told.append(f"{task['task_id']}[{task['map_index']}] {task['state']}")
            if task["state"] in ("failed", "up_for_retry"):
                attempts = range(1, task["try_number"] + 1)
                place = (dag_id, run_id, task["task_id"], task["map_index"])
                told += [self.api.log(*place, attempt)[-4000:] for attempt in attempts]
        return "\n".join(told)


def wait_until(is_so: Callable[[], object], seconds: float, what: str) -> None:
    """Wait, and say what for if it does not come."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"{what} within {seconds} s"
        time.sleep(0.1)


def fetch(url: str) -> Any:
    """Open a URL of a loopback server."""
    assert urlsplit(url).hostname == "127.0.0.1", url
    return urllib.request.urlopen(url, timeout=30)


def is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True
