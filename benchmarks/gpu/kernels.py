"""Our kernels on a GPU beside what else computes the same, and beside what the device can do.

    make gpu-kernels    python3 -m benchmarks.gpu.kernels [--out FOLDER] [--resume] [--only OP ...]

Medians of runs from a CUDA graph, with the L2 cache flushed before each. A floor is the larger of
bytes over the copy bandwidth and flops over the rate of a large product, both measured in this run.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from benchmarks.gpu import device as devices
from benchmarks.gpu.parts import Parts

FILE = "gpu_kernels.json"
# The files of benchmarks/kernels with cases, in the order in which they are worth having.
OPS = (
    "paged_decode",
    "paged_prefill",
    "varlen_attention",
    "store_kv",
    "rms_norm",
    "layer_norm",
    "gated_activation",
    "embedding_rows",
    "fixed_tile_linear",
    "kept_tokens",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    devices.add_options(parser)
    options = parser.parse_args()
    devices.require(options.device)
    parts = Parts(
        options.out / FILE,
        devices.describe(options.device),
        is_resumed=options.resume,
        minutes=options.minutes,
        only=None if options.only is None else ["rates", *options.only],
    )
    rates = parts.run("rates", partial(_rates, options.device))
    if rates is None:
        return parts.close("nothing can be held against a device whose rates are not known")
    for op in OPS:
        parts.run(op, partial(measure_op, op, rates, options.device), seconds=40)
    return parts.close(render(parts.results))


def _rates(device: str) -> dict[str, Any]:
    from benchmarks.gpu.rates import measure_rates
    from benchmarks.gpu.timer import quick_timer

    return asdict(measure_rates(quick_timer(device)))


def measure_op(op: str, rates: dict[str, float], device: str) -> dict[str, Any]:
    """Time all cases of one op and of its peers."""
    import torch

    from benchmarks.gpu.rates import Rates
    from benchmarks.gpu.timer import quick_timer
    from benchmarks.kernels.problem import Scale

    timer, ceiling = quick_timer(device), Rates(**rates)
    rows = []
    for case in cases_of(op, Scale.BENCHMARK if device == "cuda" else Scale.TOY):
        problem = case.make(torch.device(device), 0)
        seconds = timer.measure(problem.run)
        row: dict[str, Any] = {
            "case": case.name,
            "seconds": seconds,
            "floor_seconds": ceiling.seconds(problem.num_bytes, problem.flops),
            "bytes_per_second": problem.num_bytes / seconds,
            "flops_per_second": problem.flops / seconds,
            "peers": {name: _measured(timer.measure, call) for name, call in problem.peers.items()},
        }
        print(f"  {op}: {case.name}: {1e6 * seconds:.1f} us", flush=True)
        rows.append(row)
        del problem
        devices.release(device)
    return {"rows": rows}


def cases_of(op: str, scale: Any) -> list[Any]:
    cases: list[Any] = importlib.import_module(f"benchmarks.kernels.{op}").cases(scale)
    return cases


def _measured(measure: Callable[[Any], float], call: Callable[[], Any]) -> dict[str, Any]:
    """A peer's seconds, or why it does not compute this: a backend may not know the shape."""
    try:
        return {"seconds": measure(call)}
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        return {"error": f"{type(error).__name__}: {reason}"}


def render(results: dict[str, dict[str, Any]]) -> str:
    rates = results["rates"]
    lines = [
        f"Copy {rates['copy_bytes'] / 1e12:.2f} TB/s, bf16 product {rates['gemm_flops'] / 1e12:.0f}"
        " TFLOP/s.",
        "",
        "| op | case | us | TB/s | TFLOP/s | share of the floor | best peer | its us "
        "| times as fast |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for op in OPS:
        lines += [_row(op, row) for row in results.get(op, {"rows": []})["rows"]]
    return "\n".join(lines)


def _row(op: str, row: dict[str, Any]) -> str:
    seconds = row["seconds"]
    cells = [
        op,
        row["case"],
        f"{1e6 * seconds:.1f}",
        f"{row['bytes_per_second'] / 1e12:.2f}",
        f"{row['flops_per_second'] / 1e12:.0f}",
        f"{row['floor_seconds'] / seconds:.0%}",
    ]
    timed = {name: peer["seconds"] for name, peer in row["peers"].items() if "seconds" in peer}
    if timed:
        best = min(timed, key=lambda name: timed[name])
        cells += [best, f"{1e6 * timed[best]:.1f}", f"{timed[best] / seconds:.2f}"]
    else:
        cells += ["none", "", ""]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
