"""RMSNorm with its residual, beside torch's own norm after an addition."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.problem import (
    KernelCase,
    Problem,
    Scale,
    generator_of,
    random,
    tolerance_of,
)

_EPS = 1e-6


def cases(scale: Scale) -> list[KernelCase]:
    if scale is Scale.BENCHMARK:
        return [_case(rows, 3584, torch.bfloat16) for rows in (64, 256, 8192)]
    if scale is Scale.TOY:
        return [_case(3, 96, torch.float32)]
    return [
        _case(rows, size, dtype)
        for rows, size in ((1, 64), (131, 3584), (9000, 1280), (17, 8192))
        for dtype in (torch.float32, torch.bfloat16)
    ]


def _case(rows: int, size: int, dtype: torch.dtype) -> KernelCase:
    def make(device: torch.device, seed: int) -> Problem:
        from vlmflow_engine.kernels.rms_norm import add_rms_norm

        generator = generator_of(device, seed)
        x, residual = (random((rows, size), dtype, device, generator) for _ in range(2))
        weight = random((size,), dtype, device, generator)

        def reference() -> tuple[Tensor, Tensor]:
            added = x.double() + residual.double()
            # What is stored is rounded, and what is stored is normed.
            stored = added.to(dtype).double()
            root = (stored.square().mean(dim=-1, keepdim=True) + _EPS).rsqrt()
            return stored * root * weight.double(), added

        return Problem(
            run=lambda: add_rms_norm(x, residual, weight, _EPS),
            reference=reference,
            tolerance=tolerance_of(dtype),
            num_bytes=4.0 * x.nbytes,
            peers={"torch": lambda: F.rms_norm(x + residual, (size,), weight, _EPS)},
        )

    name = f"{rows} x {size} {str(dtype).removeprefix('torch.')}"
    return KernelCase(name=name, make=make)
