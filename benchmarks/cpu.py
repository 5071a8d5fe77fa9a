"""vlmflow beside transformers on this CPU: the same checkpoint, prompts, images and lengths.

    python -m benchmarks.cpu [--records 48] [--repeats 3] [--output benchmarks/results/cpu.md]

Each engine runs in a process of its own, in turns; medians are reported. transformers runs at the
best of the static batch sizes 4, 8 and 16, its requests sorted by length.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

BATCH_SIZES = (4, 8, 16)
CACHE = Path("build/benchmarks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    from benchmarks.floor import measure_floor
    from benchmarks.workload import make_checkpoint, make_requests

    checkpoint = make_checkpoint(CACHE / "llava-0.27b")
    requests = make_requests(CACHE / "images", options.records)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([request.as_dict() for request in requests], file)
        file.flush()
        best = _best_batch_size(checkpoint, file.name)
        ours, theirs = [], []
        for repeat in range(options.repeats):
            theirs.append(_run("transformers", checkpoint, file.name, str(best)))
            ours.append(_run("vlmflow", checkpoint, file.name))
            print(f"run {repeat + 1}: {theirs[-1]['seconds']:.1f} s, {ours[-1]['seconds']:.1f} s")
    floor = measure_floor(requests, int(ours[0]["prompt_tokens"]))
    table = _table(options.records, best, ours, theirs, asdict(floor), floor.seconds)
    print(table)
    if options.output:
        options.output.write_text(table)


def _best_batch_size(checkpoint: Path, requests: str) -> int:
    seconds = {}
    for size in BATCH_SIZES:
        seconds[size] = _run("transformers", checkpoint, requests, str(size))["seconds"]
        print(f"transformers, batch {size}: {seconds[size]:.1f} s", flush=True)
    return min(seconds, key=lambda size: float(seconds[size]))


def _run(engine: str, checkpoint: Path, requests: str, *more: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.worker", engine, str(checkpoint), requests, *more]
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def _table(
    records: int,
    best: int,
    ours: list[dict[str, Any]],
    theirs: list[dict[str, Any]],
    floor: dict[str, float],
    floor_seconds: float,
) -> str:
    rows = []
    for name, runs in ((f"transformers.generate, batch {best}", theirs), ("vlmflow", ours)):
        seconds = statistics.median(run["seconds"] for run in runs)
        rss = statistics.median(run["peak_rss_bytes"] for run in runs)
        tokens = runs[0]["output_tokens"]
        rows.append(
            f"| {name} | {seconds:.1f} | {records / seconds:.2f} | {tokens / seconds:.1f} "
            f"| {rss / 2**20:,.0f} | {floor_seconds / seconds:.0%} |"
        )
    ratio = statistics.median(
        their["seconds"] / our["seconds"] for our, their in zip(ours, theirs, strict=True)
    )
    lines = [
        "# CPU: captions on a 0.27 B LLaVA",
        "",
        f"{records} records, one image of 640x480 each, prompts of 10 to 60 words, outputs of 16 "
        f"to 96 tokens, bfloat16, {os.cpu_count()} cores ({_cpu_name()}), "
        f"{len(ours)} runs each in turns, medians.",
        "",
        "| engine | seconds | images/s | output tokens/s | peak RSS MiB | share of the floor |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"vlmflow is **{ratio:.2f} x** as fast (median of the pairs).",
        "",
        f"Floor: {floor_seconds:.1f} s = vision {floor['vision']:.1f} + prefill "
        f"{floor['prefill']:.1f} + decode {floor['decode']:.1f}, at {floor['gemm_tflops']:.2f} "
        f"TFLOP/s bf16 GEMM and {floor['bandwidth_gbps']:.0f} GB/s.",
        "",
        f"Python {platform.python_version()}, {_versions()}, commit {_commit()}.",
        "",
    ]
    return "\n".join(lines)


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions() -> str:
    import torch
    import transformers

    return f"torch {torch.__version__}, transformers {transformers.__version__}"


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
