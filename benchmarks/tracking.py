"""What logging to MLflow costs: the same job with and without it, in turns.

    python -m benchmarks.tracking [--records 1500] [--rounds 5] [--engine 0.27b|demo|none]

A real `mlflow server` on SQLite runs beside it on loopback, at the lowest priority: elsewhere it
would be another machine. The engine is a random LLaVA of 0.27 B parameters, the demo's model, or
one that has a fixed pace and takes no processor (`--engine none`): then the job is all there is.
The rate is that between the moments at which 20 % and 80 % of the records were done, so start-up
and the run page do not count; those are told apart. Writes results/tracking.md.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.workload import make_checkpoint
from examples.shapes.manifest import write_manifest
from tools.loopback_mlflow import loopback_mlflow

CACHE = Path("build/benchmarks")
RESULT = Path(__file__).parent / "results" / "tracking.md"
CHECKPOINT = Path(__file__).parents[1] / "examples" / "shapes" / "checkpoint"
FIXED_PACE = shlex.join([sys.executable, "-m", "tests.job.fake_engine"])
PACE_SECONDS = 0.004  # an answer of that engine
_FIRST, _LAST = 0.2, 0.8  # of the records
_ENGINES = {
    "0.27b": "a random LLaVA of 0.27 B parameters on the CPU",
    "demo": "the demo's model on the CPU",
    "none": f"an engine that answers a record every {1000 * PACE_SECONDS:.0f} ms",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", choices=tuple(_ENGINES), default="0.27b")
    options = parser.parse_args()
    runs: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = repeat(write_manifest(folder / "input"), options.records)
        with loopback_mlflow(folder / "server", nice=19) as url:
            for number in range(options.rounds):
                # Who goes first changes: a machine that grows busier favours nobody.
                for is_tracked in (True, False) if number % 2 else (False, True):
                    output = folder / f"out-{number}-{is_tracked}"
                    arguments = ["--manifest", str(manifest), "--output", str(output)]
                    arguments += ["--mlflow-uri", url] if is_tracked else ["--no-mlflow"]
                    runs[is_tracked].append(run(arguments, output, options.engine))
                    print(is_tracked, runs[is_tracked][-1], flush=True)
    report(options, runs)


def repeat(manifest: Path, count: int) -> Path:
    """A manifest of so many of its good records, over and over."""
    good = [
        line
        for line in manifest.read_text().splitlines()
        if line.startswith('{"') and '"scene-' in line
    ]
    path = manifest.with_name("m.jsonl")
    with path.open("w") as file:
        for number in range(count):
            record = json.loads(good[number % len(good)]) | {"id": f"r{number}"}
            file.write(json.dumps(record) + "\n")
    return path


def run(arguments: list[str], output: Path, engine: str) -> tuple[float, float]:
    """Records a second between the marks, and seconds from the command to its end."""
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    if engine == "none":
        environment |= {"VLMFLOW_ENGINE_COMMAND": FIXED_PACE}
        environment |= {"FAKE_ENGINE_SECONDS": str(PACE_SECONDS)}
    checkpoint = make_checkpoint(CACHE / "llava-0.27b") if engine == "0.27b" else CHECKPOINT
    start = time.monotonic()
    subprocess.run(
        [
            *(sys.executable, "-m", "vlmflow", "run", "--model", str(checkpoint)),
            # Small batches: records must end one after another for there to be a rate.
            *("--max-batch-size", "8" if engine == "0.27b" else "64"),
            *("--max-new-tokens", "32", "--no-dedup", "--name", "job", *arguments),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    seconds = time.monotonic() - start
    [timeline] = (output / "job/_work/timelines").glob("*.json")
    return rate_between_marks(json.loads(timeline.read_text())), seconds


def rate_between_marks(timeline: dict[str, list[list[float]]]) -> float:
    points = timeline["points"]
    total = sum(point[1] for point in points)
    first, last = moment(points, _FIRST * total), moment(points, _LAST * total)
    return (_LAST - _FIRST) * total / (last - first)


def moment(points: list[list[float]], count: float) -> float:
    """When so many records were done, between two points on the straight line."""
    done = at = 0.0
    for point in points:
        seconds, records = point[0], point[1]
        if records and done + records >= count:
            return at + seconds * (count - done) / records
        done, at = done + records, at + seconds
    return at


def report(options: argparse.Namespace, runs: dict[bool, list[tuple[float, float]]]) -> None:
    ratios = [on[0] / off[0] for on, off in zip(runs[True], runs[False], strict=True)]
    lines = [
        "# What logging to MLflow costs",
        "",
        f"`python -m benchmarks.tracking --records {options.records} --rounds {options.rounds} "
        f"--engine {options.engine}`: "
        f"{_ENGINES[options.engine]}, metrics every second, a local `mlflow server` on SQLite, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}. In turns, medians.",
        "",
        "| | records/s between 20 % and 80 % | lowest | highest | whole command s |",
        "|---|---|---|---|---|",
    ]
    for is_tracked, name in ((False, "--no-mlflow"), (True, "with MLflow")):
        rates, seconds = zip(*runs[is_tracked], strict=True)
        lines.append(
            f"| {name} | {statistics.median(rates):.2f} | {min(rates):.2f} | {max(rates):.2f} "
            f"| {statistics.median(seconds):.1f} |"
        )
    lines += [
        "",
        f"With by without, pair by pair: median {statistics.median(ratios):.4f}, from "
        f"{min(ratios):.4f} to {max(ratios):.4f}. What the whole command takes longer is the run "
        "page at the end, and MLflow's own start-up, neither while the engine works.",
    ]
    RESULT.write_text("\n".join(lines) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
