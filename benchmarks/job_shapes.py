"""The whole job on the demo's model: S3 on loopback, commits, MLflow; and how its cost grows.

Each job is a `vlmflow run` of its own, against an S3 server in another process. The engine's
throughput is measured apart from it, in a Pipeline with little room (`BATCH`), so that even 64
records pass through it in several batches. What is timed there is between the 20 % and the 80 %
marks: neither filling up nor running dry.
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3

from benchmarks.job import serving_s3, use_nobody
from benchmarks.kept_runs import Measurement
from benchmarks.shapes_input import CHECKPOINT, draw_scenes, put_manifest

BATCH = 8  # sequences in a step, where throughput over sizes is measured
_MARKS = (0.2, 0.8)  # of the records
_BUCKET = "bench"


def measure_job(num_records: int, cache: Path) -> Measurement:
    """W5: one job with storage and tracking."""
    with serving_s3() as endpoint:
        return _run_job(endpoint, cache, "w5", num_records, with_mlflow=True)


def measure_growth(counts: Sequence[int], cache: Path) -> Measurement:
    """By number of records: the engine's throughput, and a job's time to its first result."""
    rates = _engine_rates(counts, cache)
    rows = {}
    with serving_s3() as endpoint:
        for count in counts:
            job = _run_job(endpoint, cache, f"growth-{count}", count, with_mlflow=False)
            rows[str(count)] = job | {"engine_records_per_second": rates[count]}
    return {"sizes": rows}


def describe_job(found: Measurement) -> Iterator[str]:
    yield "## W5: the whole job, the demo's model"
    yield ""
    yield (
        f"{found['records']:,} records, S3 on loopback and MLflow: "
        f"**{found['records_per_second']:.0f} records/s** between the 20 % and 80 % marks, "
        f"{found['idle_share']:.1%} of the time from the engine's start of work to the last result "
        f"without a step. Apart from that: {found['startup_seconds']:.1f} s until the engine is "
        f"ready, {found['first_result_seconds']:.1f} s from there to the first result, "
        f"{found['wall_seconds']:.1f} s for the whole command."
    )
    yield ""


def describe_growth(found: Measurement) -> Iterator[str]:
    yield "## How cost grows"
    yield ""
    yield (
        "| records | engine, records/s in steady state | manifest read after s "
        "| engine ready after s | from there to the first result s | whole job s |"
    )
    yield "|---" * 6 + "|"
    for count, row in found["sizes"].items():
        yield (
            f"| {int(count):,} | {row['engine_records_per_second']:.1f} "
            f"| {row['planned_seconds']:.1f} | {row['ready_seconds']:.1f} "
            f"| {row['first_result_seconds']:.2f} | {row['wall_seconds']:.1f} |"
        )
    rates = [row["engine_records_per_second"] for row in found["sizes"].values()]
    yield ""
    yield f"The slowest of the throughputs is {1 - min(rates) / max(rates):.1%} below the fastest."
    yield ""


def records_per_second(timeline: dict[str, Any], marks: tuple[float, float] = _MARKS) -> float:
    """Between two shares of a job's records, by its timeline."""
    columns = timeline["columns"]
    seconds, records = columns.index("seconds"), columns.index("records")
    total = sum(point[records] for point in timeline["points"])
    moments, now, done = [], 0.0, 0.0
    wanted = [mark * total for mark in marks]
    for point in timeline["points"]:
        while wanted and point[records] and done + point[records] >= wanted[0]:
            share = (wanted.pop(0) - done) / point[records]
            moments.append(now + share * point[seconds])
        now, done = now + point[seconds], done + point[records]
    first, last = moments
    return float((marks[1] - marks[0]) * total / (last - first))


def _run_job(
    endpoint: str, cache: Path, name: str, num_records: int, *, with_mlflow: bool
) -> Measurement:
    use_nobody()
    client = boto3.client("s3", endpoint_url=endpoint)
    if _BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=_BUCKET)
    manifest = put_manifest(client, _BUCKET, name, cache / "scenes", num_records)
    command = [sys.executable, "-m", "vlmflow", "run", "--manifest", manifest]
    command += ["--model", str(CHECKPOINT), "--output", f"s3://{_BUCKET}/out", "--name", name]
    command += ["--endpoint-url", endpoint, "--max-new-tokens", "96"]
    database = cache / f"{name}-mlflow"
    shutil.rmtree(database, ignore_errors=True)
    if with_mlflow:
        database.mkdir()
        command += ["--mlflow-uri", f"sqlite:///{database / 'mlflow.db'}"]
    else:
        command.append("--no-mlflow")
    moments, wall = _timed(command)

    def read(key: str) -> Any:
        return json.loads(client.get_object(Bucket=_BUCKET, Key=key)["Body"].read())

    report = read(f"out/{name}/report.json")
    listed = client.list_objects_v2(Bucket=_BUCKET, Prefix=f"out/{name}/_work/timelines/")
    (timeline,) = [read(item["Key"]) for item in listed["Contents"]]
    (attempt,) = report["attempts"]
    if report["counts"]["succeeded"] != num_records:
        raise SystemExit(f"{name}: {report['counts']} of {num_records} records")
    return {
        "records": num_records,
        "records_per_second": records_per_second(timeline),
        "idle_share": 1 - attempt["engine"]["busy_seconds"] / attempt["last_result_seconds"],
        "startup_seconds": attempt["startup_seconds"],
        "planned_seconds": moments["planned"],
        "ready_seconds": moments["ready"],
        "first_result_seconds": attempt["first_result_seconds"],
        "wall_seconds": wall,
        "parts": report["time"]["parts"],
    }


def _timed(command: list[str]) -> tuple[dict[str, float], float]:
    """Seconds after which the manifest was read and the engine was ready; and of the whole."""
    moments: dict[str, float] = {}
    said: list[str] = []
    # As everywhere in the comparison: all cores.
    environment = {n: v for n, v in os.environ.items() if n not in ("OMP_NUM_THREADS",)}
    start = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)
        if " set aside" in line:
            moments.setdefault("planned", time.monotonic() - start)
        elif line.startswith("engine: ") and " batch " in line:
            moments.setdefault("ready", time.monotonic() - start)
    if process.wait():
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{''.join(said)}")
    return moments, time.monotonic() - start


def _engine_rates(counts: Sequence[int], cache: Path) -> dict[int, float]:
    """Records a second in steady state, by number of records; each scene is asked about once."""
    from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig

    # A small size is repeated: its middle is over in no time.
    repeats = {count: max(1, max(counts) // (4 * count)) for count in counts}
    scenes = iter(draw_scenes(cache / "scenes", 64 + sum(n * k for n, k in repeats.items())))
    rng = random.Random(0)
    config = PytorchEngineConfig(max_batch_size=BATCH, device_type="cpu")
    with Pipeline(str(CHECKPOINT), backend_config=config) as pipeline:

        def rate(count: int) -> float:
            asked = [next(scenes) for _ in range(count)]
            prompts = [(questions[0], str(path)) for path, questions in asked]
            configs = [
                GenerationConfig(max_new_tokens=rng.randint(8, 24), ignore_eos=True)
                for _ in range(count)
            ]
            finished = [
                time.perf_counter() for _ in pipeline.iter_infer(prompts, configs, is_ordered=False)
            ]
            first, last = (round(mark * (count - 1)) for mark in _MARKS)
            return (last - first) / (finished[last] - finished[first])

        rate(64)  # warm: libraries choose their kernels at the first call
        # In turns, so that what else the machine does meets all sizes alike.
        found: dict[int, list[float]] = {count: [] for count in counts}
        for turn in range(max(repeats.values())):
            for count in counts:
                if turn * repeats[count] // max(repeats.values()) == len(found[count]):
                    found[count].append(rate(count))
    return {count: statistics.median(rates) for count, rates in found.items()}
