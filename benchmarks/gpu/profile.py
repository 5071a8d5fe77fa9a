"""What a step of steady decode and the prefill of a batch are made of, on a GPU.

    make gpu-profile    python3 -m benchmarks.gpu.profile [--out FOLDER] [--resume]

For each 7B-shaped model: torch's profiler over some steps of a full batch's decode, and over a call
that only prefills, split by kinds of kernels beside the floor of the same work.
"""

import argparse
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import device as devices
from benchmarks.gpu.breakdown import Breakdown, break_down, spans_of
from benchmarks.gpu.e2e import Scale, measured_rates, scale_of
from benchmarks.gpu.parts import Parts
from benchmarks.gpu.shapes import SHAPES, ModelShape
from benchmarks.gpu.steady import check_answers, profiled, steady_decode, warm_up_profiler
from benchmarks.gpu.workload import make_requests

FILE = "gpu_profile.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    devices.add_options(parser)
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
    for name in scale.models:
        parts.run(name, partial(profile_model, SHAPES[name], scale, options.device), seconds=90)
    return parts.close(render(parts.results))


def profile_model(shape: ModelShape, scale: Scale, device: str) -> dict[str, Any]:
    """Both breakdowns of a model, with the floors of what was profiled."""
    from benchmarks.gpu.checkpoint import checkpoint_bytes, make_checkpoint, temporary_folder

    num_bytes = checkpoint_bytes(shape) if device == "cuda" else 1 << 20
    rates = measured_rates(shape, device)
    with temporary_folder(num_bytes) as folder:
        make_checkpoint(folder / "model", shape, device)
        devices.release(device)
        return _profile(folder, shape, scale, device) | {"rates": rates}


def _profile(folder: Path, shape: ModelShape, scale: Scale, device: str) -> dict[str, Any]:
    from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig

    config = PytorchEngineConfig(
        # On a CPU products in bfloat16 are kernels of our own, which torch's profiler does not see.
        dtype="bfloat16" if device == "cuda" else "float32",
        device_type=device,
        session_len=scale.session_len,
        num_preprocess_workers=scale.num_workers,
    )
    large, steady = scale.workloads[0], scale.steady
    images = folder / "images"
    with Pipeline(str(folder / "model"), backend_config=config) as pipeline:
        requests = make_requests(images, large, steady["batch_size"], series=1)
        warm_up_profiler(device)
        with steady_decode(pipeline, requests, steady["num_new_tokens"]) as decode:
            decode.wait_until_steady()
            window = decode.window(steady["num_steps"])
            events = decode.profile(device, steady["num_profiled_steps"])
        decoded = break_down(spans_of(events))
        requests = make_requests(images, large, scale.num_prefilled, series=2)
        before = pipeline.stats.num_prefill_tokens

        def prefill() -> None:
            one = GenerationConfig(max_new_tokens=1, ignore_eos=True)
            answers = pipeline([(request.text, request.image) for request in requests], one)
            assert isinstance(answers, list)
            check_answers(answers, [1] * len(requests))

        prefilled = break_down(spans_of(profiled(device, prefill)))
        tokens = pipeline.stats.num_prefill_tokens - before
    return {
        "decode": _as_dict(decoded)
        | {
            "num_steps": steady["num_profiled_steps"],
            "step_seconds": window.step_seconds,  # without the profiler
            "batch_size": window.batch_size,
            "mean_context": window.mean_context,
        },
        "prefill": _as_dict(prefilled)
        | {"num_images": len(requests), "num_tokens": tokens, "side": large.side},
    }


def _as_dict(breakdown: Breakdown | None) -> dict[str, Any]:
    """Raises RuntimeError if nothing ran."""
    if breakdown is None:
        raise RuntimeError("torch's profiler has seen nothing run on the device")
    return asdict(breakdown) | {"busy_share": breakdown.busy_share}


def render(results: dict[str, dict[str, Any]]) -> str:
    from benchmarks.gpu.e2e_table import model_rates
    from benchmarks.gpu.floor import decode_step_floor, prefill_floor

    lines = ["| model, phase | kind of kernel | ms | share |", "|---|---|---|---|"]
    for name, result in results.items():
        shape, rates = SHAPES[name], model_rates(result["rates"])
        decode, prefill = result["decode"], result["prefill"]
        floors = {
            "decode": decode["num_steps"]
            * decode_step_floor(shape, rates, decode["batch_size"], decode["mean_context"]),
            "prefill": prefill_floor(
                shape,
                rates,
                num_images=prefill["num_images"],
                side=prefill["side"],
                prompt_tokens=prefill["num_tokens"],
            ),
        }
        for phase, floor in floors.items():
            part = result[phase]
            idle = part["seconds"] - part["busy_seconds"]
            rows = {**part["by_kind"], "nothing runs": idle, "in all": part["seconds"]}
            rows["the floor of it"] = floor
            for kind, seconds in rows.items():
                share = seconds / part["seconds"]
                lines.append(f"| {name}, {phase} | {kind} | {1e3 * seconds:.2f} | {share:.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
