"""Where W1's time goes: by phase, by what is computed, and what no step was for.

    python -m benchmarks.cpu_profile [--records 48] [--quant int8]

By phase it is the engine's own count. By kind it is sampled: every two milliseconds a thread looks
which line of the engine its thread is in, and the innermost file of the package says what it is
for; kernels of torch and of ours are called from there and count with it, and so does what Python
needs around them. Nothing is switched on in the engine, and nothing is counted twice. What that is,
dispatch and Python, is told by a model of the same layers and hardly any width. Writes
benchmarks/results/cpu_profile.md.
"""

import argparse
import os
import re
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks.cpu import CACHE
from benchmarks.kept_runs import commit
from benchmarks.request import BenchmarkRequest
from benchmarks.workload import (
    WORKLOADS,
    make_checkpoint,
    make_narrow_checkpoint,
    make_requests,
)
from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig

RESULT = Path("benchmarks/results/cpu_profile.md")
_SAMPLE_SECONDS = 0.002
_PACKAGE = os.sep + "vlmflow_engine" + os.sep
# The first that matches a file's place in the package decides.
_KINDS: tuple[tuple[str, str], ...] = (
    ("GEMMs", r"(layers/.*(linear|weight)|kernels/cpu/linear|kernels/fixed_tile)"),
    (
        "attention",
        r"(attend|attention|segments|paged|kv_cache|decode_work|prefill|store_kv|merge_splits)",
    ),
    ("norms, rotary, activations", r"(norm|rotary|rope|mlp|activation)"),
    ("sampling", r"runner/(draw|device_|sampler|ranking|logits|logprobs|grammar)"),
    ("embeddings, images into rows", r"(embedding|encoder_runner|patches|projector)"),
    ("laying out a step", r"runner/|layers/host_array|kernels/cpu"),
    ("planning a step", r"(scheduler/|plan\.py|sequence\.py|step_times|stats\.py)"),
    ("models: what is between the layers", r"models/"),
    ("waiting for prepared prompts", r"inputs/"),
    ("idle", r"loop\.py"),
    ("requests and answers", r"(driver|answers|engine)\.py"),
)


@dataclass(frozen=True, slots=True)
class Profile:
    """One run of a workload."""

    seconds: float
    by_kind: dict[str, float]  # share of the samples
    by_line: list[tuple[str, float]]  # the most frequent ones: file:function, share
    stats: dict[str, float]  # what the engine counted meanwhile


class Sampler:
    """Looks again and again where a thread is."""

    def __init__(self, thread_name: str) -> None:
        (self._ident,) = [t.ident for t in threading.enumerate() if t.name == thread_name]
        self._counts: Counter[tuple[str, str]] = Counter()  # (file in the package, function)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Sampler":
        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(_SAMPLE_SECONDS / 10)  # else Python code would be seen too rarely
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        sys.setswitchinterval(self._interval)

    def shares(self) -> dict[tuple[str, str], float]:
        total = max(1, self._counts.total())
        return {place: count / total for place, count in self._counts.most_common()}

    def _watch(self) -> None:
        while not self._is_over.wait(_SAMPLE_SECONDS):
            frame = sys._current_frames().get(self._ident or 0)
            self._counts[innermost(frame)] += 1


def innermost(frame: FrameType | None) -> tuple[str, str]:
    """The file of the package that a stack is in, and the function; ("", "") if in none."""
    while frame is not None:
        _, found, file = frame.f_code.co_filename.rpartition(_PACKAGE)
        if found:
            return file.replace(os.sep, "/"), frame.f_code.co_name
        frame = frame.f_back
    return "", ""


def kind_of(file: str) -> str:
    """What a file of the package is for."""
    for kind, pattern in _KINDS:
        if re.search(pattern, file):
            return kind
    return "other"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=48)
    parser.add_argument("--quant", help="of the weights, such as int8")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    more = {"quant": options.quant} if options.quant else {}
    checkpoint = make_checkpoint(CACHE / "llava-0.27b")
    profile = profile_captions(checkpoint, options.records, more)
    narrow = profile_captions(make_narrow_checkpoint(CACHE / "llava-narrow"), options.records, more)
    text = "\n".join(_render(profile, narrow, options.records, more))
    print(text)
    options.output.write_text(text, encoding="utf-8")


def profile_captions(checkpoint: Path, num_records: int, config: dict[str, Any]) -> Profile:
    """Run W1 with so many records and look where the engine's thread is."""
    workload = replace(WORKLOADS[0], num_images=num_records)
    requests = make_requests(CACHE / "images", workload)
    warm_up = [BenchmarkRequest(str(CACHE / "images" / "warm-up.png"), "describe", 4)] * 2
    settings = PytorchEngineConfig(dtype="bfloat16", device_type="cpu", **config)
    with Pipeline(str(checkpoint), backend_config=settings) as pipeline:
        _answer(pipeline, warm_up)
        before = pipeline.stats.as_dict()
        start = time.perf_counter()
        with Sampler("vlmflow-engine") as sampler:
            _answer(pipeline, requests)
        seconds = time.perf_counter() - start
        after = pipeline.stats.as_dict()
    by_kind: dict[str, float] = {}
    for (file, _), share in sampler.shares().items():
        by_kind[kind_of(file)] = by_kind.get(kind_of(file), 0.0) + share
    return Profile(
        seconds=seconds,
        by_kind=dict(sorted(by_kind.items(), key=lambda item: -item[1])),
        by_line=[(f"{f}: {name}", share) for (f, name), share in sampler.shares().items()][:16],
        stats={name: after[name] - before[name] for name in after},
    )


def _answer(pipeline: Pipeline, requests: list[BenchmarkRequest]) -> None:
    configs = [
        GenerationConfig(max_new_tokens=request.num_new_tokens, ignore_eos=True)
        for request in requests
    ]
    pipeline([(request.text, request.image) for request in requests], configs)


def _render(
    profile: Profile, narrow: Profile, num_records: int, config: dict[str, Any]
) -> list[str]:
    stats, seconds = profile.stats, profile.seconds
    steps = stats["num_steps"]
    phases = {
        "vision": stats["vision_seconds"],
        "prefill": stats["prefill_seconds"],
        "decode": stats["decode_seconds"],
        "waiting for prepared prompts": stats["preprocess_wait_seconds"],
    }
    phases["between steps"] = max(0.0, seconds - sum(phases.values()))
    named = "".join(f", {name} {value}" for name, value in config.items())
    return [
        "# Where the time of W1 goes",
        "",
        f"{num_records} records{named}: {seconds:.1f} s, {steps:.0f} steps of "
        f"{stats['sum_running'] / steps:.0f} sequences on average, "
        f"{stats['num_prefill_tokens']:,.0f} tokens of prompts, "
        f"{stats['num_output_tokens']:,.0f} of answers; {torch.get_num_threads()} threads, "
        f"commit {commit()}. Written by `python -m benchmarks.cpu_profile`.",
        "",
        "| phase | seconds | share |",
        "|---|---|---|",
        *(f"| {name} | {value:.2f} | {value / seconds:.1%} |" for name, value in phases.items()),
        "",
        "| what the engine's thread is at | share |",
        "|---|---|",
        *(f"| {kind} | {share:.1%} |" for kind, share in profile.by_kind.items()),
        "",
        "| where most often | share |",
        "|---|---|",
        *(f"| `{place}` | {share:.1%} |" for place, share in profile.by_line),
        "",
        "The same layers with next to no width: "
        f"{1000 * narrow.stats['busy_seconds'] / narrow.stats['num_steps']:.1f} ms a step, "
        f"{narrow.stats['busy_seconds'] / stats['busy_seconds']:.1%} of the engine's time above. "
        "So much are dispatch, Python and what else does not grow with a model.",
        "",
    ]


if __name__ == "__main__":
    main()
