"""Keys and values in 8-bit floating point (e4m3), in plain torch.

A row is one token's key (or value) of one head, [head_dim]. It is stored with one scale, which
takes its largest element to the largest number of the format:

    code  = round(x / scale)        float8_e4m3fn, -448 to 448
    x    ~= code * scale            off by a sixteenth of itself at most, or by scale / 1024

codes    float8_e4m3fn [..., head_dim]
scales   bfloat16 [..., 1], rounded up, so that nothing exceeds 448

A GPU reads these at half the bytes and without a minimum to add; whole numbers in 8 bits
(kernels/kv_quant.py) take 2 bytes a row more and are nearer by a factor of two to five
(benchmarks/results/kv_quant.md). bfloat16 rather than float32 for the scale: codes are made with
the number as it is stored, so that the error is the same.
"""

import math

import torch
from torch import Tensor

from vlmflow_engine.kernels.kv_quant import round_towards

FLOAT8_DTYPE = torch.float8_e4m3fn
FLOAT8_SCALES_PER_ROW = 1
FLOAT8_MAX = 448.0

_FLOAT32_BITS = ~0x78000000  # all but the upper exponent, which a shifted sign would fill


def quantise_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and scales of the rows x [..., head_dim].

    A row with a NaN or an infinity has a scale of NaN, and is read back as NaN.
    """
    x = x.float()
    scale = x.abs().amax(dim=-1, keepdim=True) / FLOAT8_MAX
    scale = round_towards(math.inf, scale.masked_fill_(scale == math.inf, math.nan))
    return (x / torch.where(scale == 0, 1, scale)).to(FLOAT8_DTYPE), scale


def dequantise_float8(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the rows [..., head_dim]; computed in float32 and rounded to `dtype` once."""
    # The bits of a float32 but for the exponent's bias, 7 instead of 127. On a CPU this takes a
    # tenth of the time of torch's own conversion, and a scale of NaN says what is none.
    bits = (
        codes.view(torch.int8).to(torch.int32).bitwise_left_shift_(20).bitwise_and_(_FLOAT32_BITS)
    )
    return bits.view(torch.float32).mul_(2.0**120).mul_(scales.float()).to(dtype)
