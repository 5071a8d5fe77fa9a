"""LayerNorm of vision towers, beside torch's."""

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

_EPS = 1e-5


def cases(scale: Scale) -> list[KernelCase]:
    if scale is Scale.BENCHMARK:
        return [_case(40 * 577, 1024, torch.bfloat16), _case(16 * 1025, 1024, torch.bfloat16)]
    if scale is Scale.TOY:
        return [_case(3, 96, torch.float32)]
    return [
        _case(rows, size, dtype)
        for rows, size in ((1, 64), (131, 1152), (9000, 1280), (17, 3200))
        for dtype in (torch.float32, torch.bfloat16)
    ]


def _case(rows: int, size: int, dtype: torch.dtype) -> KernelCase:
    def make(device: torch.device, seed: int) -> Problem:
        from vlmflow_engine.kernels.layer_norm import layer_norm

        generator = generator_of(device, seed)
        x = random((rows, size), dtype, device, generator)
        weight, bias = (random((size,), dtype, device, generator) for _ in range(2))

        def reference() -> Tensor:
            return F.layer_norm(x.double(), (size,), weight.double(), bias.double(), _EPS)

        return Problem(
            run=lambda: layer_norm(x, weight, bias, _EPS),
            reference=reference,
            tolerance=tolerance_of(dtype),
            num_bytes=2.0 * x.nbytes,
            peers={"torch": lambda: F.layer_norm(x, (size,), weight, bias, _EPS)},
        )

    name = f"{rows} x {size} {str(dtype).removeprefix('torch.')}"
    return KernelCase(name=name, make=make)
