"""vlmflow beside transformers on a GPU, end to end, on 7B-shaped models of random weights.

    make gpu-e2e        python3 -m benchmarks.gpu.e2e [--out FOLDER] [--resume] [--only PART ...]

For each model: a checkpoint made on the device and kept in memory, then each engine in a process of
its own, with the same requests: one image each, answers of given lengths. vlmflow runs a workload
three times, on other images each time, and medians count. transformers gets its best batch size.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import device as devices
from benchmarks.gpu.parts import Parts
from benchmarks.gpu.shapes import LLAVA, QWEN, SHAPES, TOY_LLAVA, TOY_QWEN, ModelShape
from benchmarks.gpu.workload import (
    LARGE_IMAGES,
    SMALL_IMAGES,
    TOY_LARGE,
    TOY_SMALL,
    Workload,
    make_requests,
    save_requests,
)

FILE = "gpu_e2e.json"
# About what a part takes on an H200, its share of making the checkpoint included: guesses.
_SECONDS = {"rates": 5, "vlmflow": 150, "transformers": 170}
_GRACE_SECONDS = 20  # beyond the time of the call, before an engine's process is ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much of it there is: on a GPU, or in a rehearsal on a CPU."""

    models: tuple[str, ...]
    workloads: tuple[Workload, ...]
    num_requests: int
    num_probed: int  # by transformers, to find its batch size
    batch_sizes: tuple[int, ...]  # of transformers
    repeats: int  # of vlmflow
    session_len: int
    num_workers: int  # processes that decode images
    num_prefilled: int  # requests of the call whose prefill is profiled
    steady: dict[str, int]  # batch_size, num_new_tokens, num_steps, num_profiled_steps


def scale_of(device: str) -> Scale:
    if device == "cuda":
        return Scale(
            models=(QWEN, LLAVA),
            workloads=(LARGE_IMAGES, SMALL_IMAGES),
            num_requests=128,
            num_probed=32,
            batch_sizes=(8, 16, 32, 64, 128),
            repeats=3,
            session_len=4096,
            num_workers=max(1, min(14, (os.cpu_count() or 2) - 2)),
            num_prefilled=16,
            steady={
                "batch_size": 64,
                "num_new_tokens": 400,
                "num_steps": 100,
                "num_profiled_steps": 30,
            },
        )
    return Scale(
        models=(TOY_QWEN, TOY_LLAVA),
        workloads=(TOY_LARGE, TOY_SMALL),
        num_requests=5,
        num_probed=2,
        batch_sizes=(1, 2, 4),
        repeats=2,
        session_len=512,
        num_workers=0,
        num_prefilled=2,
        steady={"batch_size": 3, "num_new_tokens": 360, "num_steps": 5, "num_profiled_steps": 2},
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    devices.add_options(parser)
    parser.add_argument(
        "--engine", type=json.loads, default={}, metavar="JSON", help="more of the engine's config"
    )
    options = parser.parse_args()
    devices.require(options.device)
    scale = scale_of(options.device)
    parts = Parts(
        options.out / FILE,
        devices.describe(options.device),
        is_resumed=options.resume,
        minutes=options.minutes,
        only=options.only,
    )
    # A resumed call makes a checkpoint anew only if a part of it is missing.
    for name in scale.models:
        shape = SHAPES[name]
        parts.run(f"{name} rates", partial(measured_rates, shape, options.device))
        with _Folder(shape, scale, options.device, options.engine, parts) as folder:
            for part, (engine, workloads) in engine_parts(name, scale).items():
                parts.run(part, partial(folder.run, engine, workloads), seconds=_SECONDS[engine])
    return parts.close(render(parts.results, scale))


def engine_parts(model: str, scale: Scale) -> dict[str, tuple[str, tuple[Workload, ...]]]:
    """A model's parts: engine and workloads by name. transformers' take longest: one a part."""
    found = {f"{model} vlmflow": ("vlmflow", scale.workloads)}
    for workload in scale.workloads:
        found[f"{model} transformers, {workload.name}"] = ("transformers", (workload,))
    return found


def measured_rates(shape: ModelShape, device: str) -> dict[str, float]:
    """What the device does at a model's shapes, in this run."""
    from benchmarks.gpu.floor import measure_model_rates
    from benchmarks.gpu.rates import measure_rates
    from benchmarks.gpu.timer import quick_timer

    timer = quick_timer(device)
    rates = measure_rates(timer)
    model_rates = measure_model_rates(shape, timer, rates.copy_bytes)
    return asdict(model_rates) | {"square_gemm_flops": rates.gemm_flops}


class _Folder:
    """A model's checkpoint and requests, made when the first engine wants them."""

    def __init__(
        self,
        shape: ModelShape,
        scale: Scale,
        device: str,
        engine_config: dict[str, Any],
        parts: Parts,
    ) -> None:
        self._shape, self._scale, self._device = shape, scale, device
        self._engine_config, self._parts = engine_config, parts
        self._made: Iterator[tuple[Path, dict[str, Any]]] | None = None

    def __enter__(self) -> "_Folder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._made is not None:
            next(self._made, None)

    def run(self, engine: str, workloads: Sequence[Workload]) -> dict[str, Any]:
        """Let an engine answer in a process of its own."""
        if self._made is None:
            self._made = _make(self._shape, self._scale, self._device)
            self._place = next(self._made)
        folder, plan = self._place
        plan_path, result_path = folder / f"{engine}-plan.json", folder / f"{engine}.json"
        own = {
            "engine": self._engine_config,
            "started": time.time(),
            "workloads": {
                workload.name: plan["workloads"][workload.name] for workload in workloads
            },
        }
        plan_path.write_text(json.dumps(plan | own), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.gpu.worker", engine]
        subprocess.run(
            [*command, str(plan_path), str(result_path)],
            check=True,
            timeout=max(0.0, self._parts.seconds_left) + _GRACE_SECONDS,
        )
        result: dict[str, Any] = json.loads(result_path.read_text(encoding="utf-8"))
        return result


def _make(shape: ModelShape, scale: Scale, device: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Write checkpoint and requests; they are gone when the iterator goes on."""
    from benchmarks.gpu.checkpoint import checkpoint_bytes, make_checkpoint, temporary_folder

    num_bytes = checkpoint_bytes(shape) if device == "cuda" else 1 << 20
    with temporary_folder(num_bytes) as folder:
        start = time.perf_counter()
        make_checkpoint(folder / "model", shape, device)
        devices.release(device)
        print(f"{shape.name}: made in {time.perf_counter() - start:.1f} s", flush=True)
        yield folder, _plan(folder, shape, scale, device)


def _plan(folder: Path, shape: ModelShape, scale: Scale, device: str) -> dict[str, Any]:
    """Draw all requests and say where they lie."""

    def saved(workload: Workload, count: int, series: int) -> str:
        path = folder / f"{workload.side}-{series}.json"
        save_requests(path, make_requests(folder / "images", workload, count, series=series))
        return str(path)

    large = scale.workloads[0]
    return {
        "folder": str(folder / "model"),
        "kind": shape.kind,
        "device": device,
        "session_len": scale.session_len,
        "num_workers": scale.num_workers,
        "num_probed": scale.num_probed,
        "batch_sizes": scale.batch_sizes,
        "warm_up": saved(large, 2, 99),
        "steady": scale.steady | {"requests": saved(large, scale.steady["batch_size"], 98)},
        "workloads": {
            workload.name: [
                saved(workload, scale.num_requests, series) for series in range(scale.repeats)
            ]
            for workload in scale.workloads
        },
    }


def render(results: dict[str, dict[str, Any]], scale: Scale) -> str:
    from benchmarks.gpu.e2e_table import render_table

    return render_table(results, scale.models, scale.workloads, scale.num_requests)


if __name__ == "__main__":
    sys.exit(main())
