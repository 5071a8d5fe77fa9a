"""How far stored rows are from what went in: the engine's format beside others of so many bits.

Others differ in one choice each: one scale around zero instead of a scale and a minimum, and
float32 instead of bfloat16 for those numbers. float8 stands beside them with scales of both dtypes,
with one that is a power of two, and with none.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vlmflow_engine.kernels.kv_float8 import (
    FLOAT8_DTYPE,
    FLOAT8_MAX,
    dequantise_float8,
    quantise_float8,
)
from vlmflow_engine.kernels.kv_quant import dequantise, quantise

Format = Callable[[Tensor, int], Tensor]  # rows, bits -> rows as they are read back


def engine_format(x: Tensor, bits: int) -> Tensor:
    return dequantise(*quantise(x, bits), bits, torch.float32)


def scale_and_minimum_float32(x: Tensor, bits: int) -> Tensor:
    low, high = x.aminmax(dim=-1, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp_min(1e-30)
    stored: Tensor = ((x - low) / scale).round() * scale + low
    return stored


def scale_only_float32(x: Tensor, bits: int) -> Tensor:
    largest = 2 ** (bits - 1) - 1
    scale = (x.abs().amax(dim=-1, keepdim=True) / largest).clamp_min(1e-30)
    stored: Tensor = (x / scale).round() * scale
    return stored


def engine_float8(x: Tensor) -> Tensor:
    return dequantise_float8(*quantise_float8(x), torch.float32)


def float8_scale_float32(x: Tensor) -> Tensor:
    return _float8(x, _float8_scale(x))


def float8_power_of_two(x: Tensor) -> Tensor:
    return _float8(x, _float8_scale(x).log2().ceil().exp2())


def float8_without_scale(x: Tensor) -> Tensor:
    return _float8(x, torch.ones(()))


def _float8_scale(x: Tensor) -> Tensor:
    return (x.abs().amax(dim=-1, keepdim=True) / FLOAT8_MAX).clamp_min(1e-30)


def _float8(x: Tensor, scale: Tensor) -> Tensor:
    return (x / scale).to(FLOAT8_DTYPE).float() * scale


FORMATS: dict[str, tuple[int, Format]] = {  # name -> (bytes beside the codes, what it does)
    "scale and minimum, bfloat16 (the engine's)": (4, engine_format),
    "scale and minimum, float32": (8, scale_and_minimum_float32),
    "scale only, float32": (4, scale_only_float32),
}
FLOAT8_FORMATS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "float8, scale, bfloat16 (the engine's)": (2, engine_float8),
    "float8, scale, float32": (4, float8_scale_float32),
    "float8, scale, a power of two": (1, float8_power_of_two),
    "float8 as it is": (0, float8_without_scale),
}


def synthetic_rows(num_rows: int = 20_000, head_dim: int = 64) -> dict[str, Tensor]:
    """Gaussian rows, and such with two outlying channels, as keys of trained models have them."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(num_rows, head_dim, generator=generator)
    outlying = rows.clone()
    outlying[:, 5] += 8
    outlying[:, 40] -= 5
    return {"Gaussian": rows, "Gaussian, two outlying channels": outlying}


def relative_error(stored: Tensor, x: Tensor) -> float:
    """Root mean square of the error, as a share of that of x."""
    difference = stored.double() - x.double()
    return float((difference.square().mean() / x.double().square().mean()).sqrt())


def error_table(rows: dict[str, Tensor]) -> list[str]:
    """Lines of a table: a format and a number of bits each, an error for each kind of row."""
    lines = [
        f"| format | bits | bytes beside the codes | {' | '.join(rows)} |",
        "|---" * (3 + len(rows)) + "|",
    ]
    for bits in (8, 4):
        for name, (num_bytes, stored) in FORMATS.items():
            errors = [f"{relative_error(stored(x, bits), x):.2%}" for x in rows.values()]
            lines.append(f"| {name} | {bits} | {num_bytes} | {' | '.join(errors)} |")
    for name, (num_bytes, as_float8) in FLOAT8_FORMATS.items():
        errors = [f"{relative_error(as_float8(x), x):.2%}" for x in rows.values()]
        lines.append(f"| {name} | 8 | {num_bytes} | {' | '.join(errors)} |")
    return lines
