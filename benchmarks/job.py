"""The job without a model: records a second through manifest, commits and report; and memory.

    python -m benchmarks.job [--records 100000] [--lines 1000000] [--rounds 3]

A process of its own serves S3 on loopback. The engine answers at once (`job_engine.py`), so the
time is the job's own. RSS is the job process's, asked ten times a second. Writes results/job.md.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import psutil

RESULT = Path(__file__).parent / "results" / "job.md"
_SERVER = """
import sys
from tools.loopback_s3 import loopback_s3
with loopback_s3() as url:
    print(url, flush=True)
    sys.stdin.read()
"""
_NOBODY = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nobody",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Memory:
    """RSS of a process over time, in MiB."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._values: list[float] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> tuple[float, float]:
        """The peak, and the growth of the median from the third quarter to the last."""
        self._is_over.set()
        self._thread.join()
        quarter = max(1, len(self._values) // 4)
        third, last = self._values[-2 * quarter : -quarter], self._values[-quarter:]
        growth = statistics.median(last) - statistics.median(third or last)
        return max(self._values), growth

    def _watch(self) -> None:
        while not self._is_over.wait(0.1):
            try:
                self._values.append(self._process.memory_info().rss / 2**20)
            except psutil.NoSuchProcess:
                return


def use_nobody() -> None:
    """Loopback takes any credentials; the user's own must not be asked for."""
    os.environ.update(_NOBODY)


@contextmanager
def serving_s3() -> Iterator[str]:
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.kill()
        server.communicate()


def put_manifest(endpoint: str, key: str, count: int) -> None:
    client = boto3.client("s3", endpoint_url=endpoint)
    lines = (
        json.dumps({"id": f"record-{n:08d}", "prompt": f"What is to be said of case {n}?"})
        for n in range(count)
    )
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        client.upload_file(file.name, "bench", key)


def run(arguments: list[str]) -> tuple[float, float, float]:
    """Seconds, peak and growth of a command of ours."""
    engine = shlex.join([sys.executable, "-m", "benchmarks.job_engine"])
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "vlmflow", *arguments],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "VLMFLOW_ENGINE_COMMAND": engine},
    )
    memory = Memory(process.pid)
    code = process.wait()
    seconds = time.monotonic() - start
    if code:
        raise SystemExit(f"{' '.join(arguments)} ended with exit code {code}")
    return seconds, *memory.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    use_nobody()
    rows = []
    with serving_s3() as endpoint, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text("{}")
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="bench")
        common = ["--model", folder, "--output", "s3://bench/out", "--endpoint-url", endpoint]
        put_manifest(endpoint, "run.jsonl", options.records)
        runs = [
            run(
                ["run", "--manifest", "s3://bench/run.jsonl", *common, "--no-mlflow"]
                + ["--name", f"run-{number}"]
            )
            for number in range(options.rounds)
        ]
        rows.append((f"run, {options.records:,} records", options.records, runs))
        put_manifest(endpoint, "check.jsonl", options.lines)
        checks = [run(["check", "--manifest", "s3://bench/check.jsonl", *common])]
        rows.append((f"check, {options.lines:,} lines", options.lines, checks))
    lines = [
        "# The job without a model",
        "",
        "S3 on loopback in a process of its own, an engine that answers at once, "
        f"{os.cpu_count()} cores, medians of {options.rounds} runs (check: one). From the command "
        "to its end, start-up included.",
        "",
        "| | seconds | records/s | peak RSS MiB | growth in the last quarter MiB |",
        "|---|---|---|---|---|",
    ]
    for name, count, values in rows:
        seconds, peak, growth = (statistics.median(column) for column in zip(*values, strict=True))
        lines.append(
            f"| {name} | {seconds:.1f} | {count / seconds:,.0f} | {peak:.0f} | {growth:+.1f} |"
        )
    RESULT.write_text("\n".join(lines) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
