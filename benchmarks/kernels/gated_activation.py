"""The gate of an MLP, beside torch's activation and product."""

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


def cases(scale: Scale) -> list[KernelCase]:
    if scale is Scale.BENCHMARK:
        return [_case("silu", rows, 18_944, torch.bfloat16) for rows in (64, 256, 8192)]
    if scale is Scale.TOY:
        return [_case("silu", 3, 96, torch.float32)]
    return [
        _case(name, rows, size, dtype)
        for name in ("silu", "gelu", "gelu_pytorch_tanh")
        for rows, size in ((1, 64), (131, 18_944), (17, 3420))
        for dtype in (torch.float32, torch.bfloat16)
    ]


def _case(activation: str, rows: int, size: int, dtype: torch.dtype) -> KernelCase:
    def make(device: torch.device, seed: int) -> Problem:
        from vlmflow_engine.kernels.gated_activation import gated_activation

        gate_up = random((rows, 2 * size), dtype, device, generator_of(device, seed))

        def gated(gate_up: Tensor) -> Tensor:
            gate, up = gate_up.chunk(2, dim=-1)
            if activation == "silu":
                return F.silu(gate) * up
            return F.gelu(gate, approximate="none" if activation == "gelu" else "tanh") * up

        return Problem(
            run=lambda: gated_activation(gate_up, activation),
            reference=lambda: gated(gate_up.double()),
            tolerance=tolerance_of(dtype),
            num_bytes=1.5 * gate_up.nbytes,
            peers={"torch": lambda: gated(gate_up)},
        )

    name = f"{activation} {rows} x {size} {str(dtype).removeprefix('torch.')}"
    return KernelCase(name=name, make=make)
