"""What a device can do, measured on it in the same run as what is held against it."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from benchmarks.gpu.timer import Timer


@dataclass(frozen=True, slots=True)
class Rates:
    """The two ceilings of a roofline."""

    copy_bytes: float  # a second, read and written together, of a copy within the device's memory
    gemm_flops: float  # a second, of a large square product in bfloat16

    def seconds(self, num_bytes: float, flops: float) -> float:
        """The least time for so much traffic and arithmetic."""
        return max(num_bytes / self.copy_bytes, flops / self.gemm_flops)


def measure_rates(timer: Timer) -> Rates:
    is_rehearsal = timer.device == "cpu"
    return Rates(
        copy_bytes=copy_rate(timer, (8 << 20) if is_rehearsal else (2 << 30)),
        gemm_flops=gemm_rate(timer, 256 if is_rehearsal else 8192, [(256, 256)])
        if is_rehearsal
        else gemm_rate(timer, 8192, [(8192, 8192)]),
    )


def copy_rate(timer: Timer, num_bytes: int) -> float:
    """Bytes a second, read and written, of a copy of `num_bytes`."""
    source = torch.ones(num_bytes, dtype=torch.uint8, device=timer.device)
    target = torch.empty_like(source)
    return 2 * num_bytes / timer.measure(lambda: target.copy_(source))


def gemm_rate(timer: Timer, rows: int, shapes: Iterable[tuple[int, int]]) -> float:
    """Flops a second of a chain of bfloat16 products, of `rows` rows and weights (in, out).

    On random numbers: on zeros a GPU draws less power and runs a tenth faster.
    """
    products = [
        (_random(rows, inputs, timer.device), _random(outputs, inputs, timer.device))
        for inputs, outputs in shapes
    ]

    def chain() -> None:
        for x, weight in products:
            torch.nn.functional.linear(x, weight)

    flops = sum(2 * rows * weight.numel() for _, weight in products)
    return flops / timer.measure(chain)


def _random(rows: int, columns: int, device: str) -> torch.Tensor:
    return torch.randn(rows, columns, device=device).to(torch.bfloat16)
