"""The product whose sums do not depend on the batch, beside torch's, which goes by its size."""

import torch
import torch.nn.functional as F

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
        return [
            _case(rows, inputs, outputs, torch.bfloat16)
            for rows in (64, 256, 4096)
            for inputs, outputs in ((3584, 4608), (18_944, 3584))
        ]
    if scale is Scale.TOY:
        return [_case(3, 40, 24, torch.float32)]
    return [
        _case(rows, inputs, outputs, dtype)
        for rows, inputs, outputs in ((1, 64, 512), (131, 3584, 4608), (17, 1000, 333))
        for dtype in (torch.float32, torch.bfloat16)
    ]


def _case(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> KernelCase:
    def make(device: torch.device, seed: int) -> Problem:
        from vlmflow_engine.kernels.fixed_tile_linear import fixed_tile_linear

        generator = generator_of(device, seed)
        x, weight = (random((n, inputs), dtype, device, generator) for n in (rows, outputs))
        bias = random((outputs,), dtype, device, generator)
        return Problem(
            run=lambda: fixed_tile_linear(x, weight, bias),
            reference=lambda: F.linear(x.double(), weight.double(), bias.double()),
            tolerance=tolerance_of(dtype),
            num_bytes=x.nbytes + weight.nbytes + rows * outputs * x.element_size(),
            flops=2.0 * rows * inputs * outputs,
            peers={"torch": lambda: F.linear(x, weight, bias)},
        )

    name = f"{rows} x {inputs} x {outputs} {str(dtype).removeprefix('torch.')}"
    return KernelCase(name=name, make=make)
