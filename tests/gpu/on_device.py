"""The tests that only a GPU can do: kernels beside float64, tiny models beside transformers.

    make gpu-test       python3 -m tests.gpu.on_device [--out FOLDER] [--resume] [--only PART ...]

Inputs are drawn anew in every call, from a seed that is kept with the numbers. Launchers find
memory that is full of NaN.
"""

import argparse
import secrets
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import device as devices
from benchmarks.gpu.kernels import OPS, cases_of
from benchmarks.gpu.parts import Parts

FILE = "gpu_test.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    devices.add_options(parser)
    parser.add_argument("--seed", type=int, help="draw the same inputs again")
    options = parser.parse_args()
    devices.require(options.device)
    be_exact()
    parts = Parts(
        options.out / FILE,
        devices.describe(options.device),
        is_resumed=options.resume,
        minutes=options.minutes,
        only=options.only,
    )
    seed = secrets.randbits(31) if options.seed is None else options.seed
    for op in OPS:
        parts.run(f"kernel {op}", partial(check_op, op, options.device, seed), seconds=30)
    check_families(parts, options.device)
    return parts.close(render(parts))


def be_exact() -> None:
    """Let torch compute float32 in float32: transformers' convolutions would be in TF32."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def check_op(op: str, device: str, seed: int) -> dict[str, Any]:
    """Compare one kernel with float64 in all its cases. Raises AssertionError naming those off."""
    import torch

    from benchmarks.kernels.problem import Scale, error_of

    rows, wrong = [], []
    for number, case in enumerate(cases_of(op, Scale.CHECK if device == "cuda" else Scale.TOY)):
        problem = case.make(torch.device(device), seed + number)
        try:
            error = error_of(problem)
        except AssertionError as reason:
            wrong.append(f"{case.name}: {reason}")
            continue
        if not error <= problem.tolerance:
            wrong.append(f"{case.name}: off by {error:.1e}, allowed are {problem.tolerance:.1e}")
        rows.append({"case": case.name, "error": error, "tolerance": problem.tolerance})
        del problem
        devices.release(device)
    if wrong:
        raise AssertionError(f"with seed {seed}: {'; '.join(wrong)}")
    return {"seed": seed, "rows": rows}


def check_families(parts: Parts, device: str) -> None:
    """Parity of each family's tiny checkpoint, then invariance of two of them."""
    from tests.gpu.checkpoints import FAMILIES
    from tests.gpu.engine_checks import SCHEDULES, check_invariance, check_parity

    is_rehearsal = device == "cpu"
    schedules = ["as it comes", "chunks of 16"] if is_rehearsal else list(SCHEDULES)
    with tempfile.TemporaryDirectory() as root:
        for family in FAMILIES:
            folder = family.save(Path(root) / family.name)
            parts.run(
                f"parity {family.name}",
                partial(
                    check_parity,
                    family,
                    folder,
                    device,
                    count=3 if is_rehearsal else 24,
                    schedules=schedules,
                ),
                seconds=60,
            )
            if family.name in ("llava", "qwen2_5_vl"):
                parts.run(
                    f"invariance {family.name}",
                    partial(
                        check_invariance,
                        family,
                        folder,
                        device,
                        batch_size=4 if is_rehearsal else 64,
                        tolerance=0.5 if is_rehearsal else 0.0,
                    ),
                    seconds=30,
                )


def render(parts: Parts) -> str:
    lines = ["| what | result |", "|---|---|"]
    for name, result in parts.results.items():
        if name.startswith("kernel"):
            share = max((row["error"] / row["tolerance"] for row in result["rows"]), default=0.0)
            text = f"{len(result['rows'])} cases right, at most {share:.0%} of what is allowed"
        elif name.startswith("parity"):
            turned = sum(result["near_ties"].values())
            text = (
                f"{result['num_answers']} answers as transformers', under "
                f"{len(result['near_ties'])} schedules; {turned} near-ties"
            )
        else:
            text = (
                f"logits alone and among {result['batch_size'] - 1} others differ by "
                f"{result['largest_difference']:.1e}"
            )
        lines.append(f"| {name} | {text} |")
    lines += [f"| {name} | FAILED |" for name in parts.failed]
    lines += [f"| {name} | not run: no time was left |" for name in parts.left]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
