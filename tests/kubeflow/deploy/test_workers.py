"""The Job's own command, run as processes: what it does on SIGTERM, and what its codes come to."""

import json
import os
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.airflow.kubernetes_api.containers import Image
from tests.kubeflow.deploy.job_controller import IndexedJob
from tests.kubeflow.deploy.rendered import spec_text, the
from tests.kubeflow.deploy.s3_server import ENGINE_PYTHON, ROOT, S3Server, s3_server
from vlmflow.job.spec import JobSpec

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

SECRETS = {"vlmflow-aws": {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}}
PAGE = ROOT / "docs/kubernetes.md"
NUM_RECORDS = 120
Make = Callable[..., IndexedJob]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """With the buckets and the model that the spec in deploy/ names."""
    with s3_server() as server:
        for bucket in ("data", "models"):
            server.put(bucket)
        server.put("models/internvl3-1b/config.json", b"{}")
        yield server


@pytest.fixture
def make(s3: S3Server, tmp_path: Path) -> Iterator[Make]:
    """Makes the Job that `cpu` renders, with another spec, of a model that is none."""
    made: list[IndexedJob] = []

    def make_job(
        lines: list[Any],
        *,
        engine: dict[str, str] | None = None,
        change: Callable[[dict[str, Any]], Any] = lambda job_spec: None,
        **spec: Any,
    ) -> IndexedJob:
        body = "".join(f"{json.dumps(line)}\n" for line in lines)
        s3.put("data/shapes/manifest.jsonl", body.encode())
        values = json.loads(spec_text("cpu")) | {
            "endpoint_url": s3.endpoint,
            "tracking": {"enabled": False},
            "num_shards": 6,
            "output": f"s3://data/{tmp_path.name}",
            **spec,
        }
        config = the("cpu", "ConfigMap")["metadata"]["name"]
        text = JobSpec.parse(values).canonical_json() + "\n"
        manifest = the("cpu", "Job")
        change(manifest["spec"])
        job = IndexedJob(
            manifest,
            {config: {"spec.json": text}},
            SECRETS,
            _image(engine or {}),
            tmp_path,
        )
        made.append(job)
        return job

    yield make_job
    for job in made:
        job.kill()


def _image(engine: dict[str, str]) -> Image:
    """`vlmflow` with an engine that needs no model."""
    fake = shlex.join([str(ENGINE_PYTHON), str(ROOT / "tests/job/fake_engine.py")])
    environment = {
        "VLMFLOW_ENGINE_COMMAND": fake,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "engine", ROOT / "components"))),
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        **engine,
    }
    return Image({"vlmflow": [str(ENGINE_PYTHON), "-m", "vlmflow"]}, environment)


def records(count: int) -> list[dict[str, Any]]:
    return [{"id": f"r{n}", "prompt": f"question {n}"} for n in range(count)]


def wait_until(is_so: Callable[[], object], seconds: float, job: IndexedJob) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, job.told()
        time.sleep(0.05)


def holders(s3: S3Server, folder: str) -> set[int]:
    """The processes that have had a shard."""
    keys = s3.keys("data", f"{folder}/_work/shards/")
    return {json.loads(s3.read(f"data/{key}"))["pid"] for key in keys if "/claim-" in key}


def commits(s3: S3Server, folder: str) -> list[str]:
    return [key for key in s3.keys("data", f"{folder}/_work/shards/") if "/commit-" in key]


def test_workers_that_are_told_to_stop_are_replaced_and_the_job_completes(s3, make, tmp_path):
    limits = {"commit_seconds": 0.2}
    job = make(records(NUM_RECORDS), engine={"FAKE_ENGINE_SECONDS": "0.05"}, limits=limits)
    folder = f"{tmp_path.name}/shapes"
    first, second = job.pods
    both = {first.process.pid, second.process.pid}
    wait_until(lambda: job.condition or both <= holders(s3, folder), 60, job)
    wait_until(lambda: job.condition or len(commits(s3, folder)) >= 2, 60, job)
    job.evict(first)
    second.process.terminate()  # `kubectl delete pod`: no condition says so, its code does
    assert job.wait(90) == "Complete", job.told()
    assert [(pod.exit_code, pod.action) for pod in (first, second)] == [(75, "Ignore")] * 2
    assert {pod.attempt for pod in job.pods} == {0, 1} and len(job.pods) == 4
    # All are there once, in the manifest's order, and the last worker has written the report.
    results = s3.lines("data", f"{folder}/results/")
    assert [line["id"] for line in results] == [f"r{n}" for n in range(NUM_RECORDS)]
    counts: Counter[int] = Counter()
    for key in commits(s3, folder):
        entry = json.loads(s3.read(f"data/{key}"))
        if entry["part"] is not None:
            part = f"{key.rpartition('/')[0]}/part-{entry['epoch']:06d}-{entry['part']:08d}.jsonl"
            counts.update(
                json.loads(line)["ordinal"] for line in s3.read(f"data/{part}").splitlines()
            )
    assert counts == dict.fromkeys(range(NUM_RECORDS), 1)
    assert json.loads(s3.read(f"data/{folder}/report.json"))["counts"]["succeeded"] == NUM_RECORDS
    assert s3.keys("data", f"{folder}/_SUCCESS.json")
    # Caches and the spec were where the manifest says, below each pod's own volumes.
    for pod in job.pods:
        volumes = tmp_path / f"pod-{pod.index}-{pod.attempt}" / "volumes"
        assert (volumes / "vlmflow-spec/spec.json").is_file()
        assert any((volumes / "vlmflow-cache").rglob("config.json")), job.told()


def test_a_bad_spec_fails_the_job_at_once(make):
    job = make(records(4), manifest="s3://data/shapes/no-such-manifest.jsonl")
    assert job.wait(60) == "Failed"
    codes = [pod.exit_code for pod in job.pods]
    assert len(codes) == 2 and 2 in codes, job.told()
    assert next(pod for pod in job.pods if pod.exit_code == 2).action == "FailJob"
    assert "no-such-manifest" in job.told()


def test_too_many_failures_fail_the_job_at_once(make):
    job = make([{"id": f"r{n}", "prompt": f"refuse {n}"} for n in range(12)], num_shards=2)
    assert job.wait(60) == "Failed", job.told()
    assert [pod.action for pod in job.pods if pod.exit_code == 3][0] == "FailJob", job.told()
    assert len(job.pods) == 2


def test_an_engine_that_dies_is_counted_until_each_worker_has_had_its_tries(make):
    job = make(
        records(4),
        engine={"FAKE_ENGINE_START": "die"},
        change=lambda job_spec: job_spec.update(backoffLimitPerIndex=1),  # 3 would take longer
    )
    assert job.wait(120) == "Failed", job.told()
    assert [pod.exit_code for pod in job.pods] == [4] * 4, job.told()
    assert {pod.action for pod in job.pods} == {"Count"}


@pytest.mark.slow
def test_a_pod_for_each_shard_does_the_same(s3, make, tmp_path):
    """The patch of docs/kubernetes.md, with three shards."""
    patch = yaml.safe_load(PAGE.read_text().split("```yaml\n")[2].split("```")[0])

    def change(job_spec: dict[str, Any]) -> None:
        holder = {"spec": job_spec}
        for step in yaml.safe_load(patch["patches"][0]["patch"]):
            value = step.get("value")
            apply_step(holder, step["op"], step["path"], 3 if value == 32 else value)
        arguments = job_spec["template"]["spec"]["containers"][0]["args"]
        arguments[4] = arguments[4].replace("/32", "/3")

    job = make(records(30), change=change, num_shards=3)
    assert job.wait(120) == "Complete", job.told()
    assert [(pod.index, pod.exit_code) for pod in job.pods] == [(0, 0), (1, 0), (2, 0)]
    results = s3.lines("data", f"{tmp_path.name}/shapes/results/")
    assert [line["id"] for line in results] == [f"r{n}" for n in range(30)]


def apply_step(holder: Any, kind: str, path: str, value: Any) -> None:
    """One step of a JSON patch."""
    *steps, last = path.strip("/").split("/")
    for step in steps:
        holder = holder[int(step) if isinstance(holder, list) else step]
    if kind == "remove":
        del holder[last]
    elif isinstance(holder, list) and kind == "add":
        holder.insert(int(last), value)
    else:
        holder[int(last) if isinstance(holder, list) else last] = value


def test_without_credentials_the_job_says_so_at_once(make, monkeypatch):
    monkeypatch.setitem(SECRETS, "vlmflow-aws", {})
    job = make(records(4))
    assert job.wait(60) == "Failed"
    assert "credentials" in job.told() and 2 in [pod.exit_code for pod in job.pods]
