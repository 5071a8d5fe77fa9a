"""Keys and values in 8 or 4 bits, in plain torch.

A row is one token's key (or value) of one head, [head_dim]. It is stored as whole numbers between
its own smallest and largest element:

    code  = round((x - minimum) / scale)       0 to 2**bits - 1
    x    ~= code * scale + minimum             off by scale / 2 at most

codes    uint8 [..., head_dim]; for 4 bits [..., head_dim / 2], where byte i holds element i in its
         low half and element i + head_dim / 2 in its high half
scales   bfloat16 [..., 2]: scale, minimum, each rounded away from the row's middle

Why so (root mean square error of stored rows, benchmarks/results/kv_quant.md):
- A scale and a minimum rather than one scale around zero, for a row seldom reaches as far below
  zero as above: a tenth to two fifths less error for the same bytes.
- bfloat16 rather than float32, for the same error with half the bytes: codes are made with the
  numbers as they are stored. float16 would do as well, but ends at 65504.
"""

import math

import torch
from torch import Tensor

SCALES_PER_ROW = 2
SCALES_DTYPE = torch.bfloat16


def quantise(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return codes and scales of the rows x [..., head_dim]. 4 bits want an even head_dim.

    A row of equal elements that bfloat16 holds is stored exactly. A row with a NaN or an infinity
    is read back as NaN.
    """
    x = x.float()
    low, high = torch.aminmax(x, dim=-1, keepdim=True)
    minimum = round_towards(-math.inf, low)
    scale = round_towards(math.inf, (high - minimum) / (2**bits - 1))
    codes = (x - minimum).div_(torch.where(scale == 0, 1, scale)).round_().to(torch.uint8)
    if bits == 4:
        first, second = codes.chunk(2, dim=-1)
        codes = first | second << 4
    return codes, torch.cat([scale, minimum], dim=-1)


def dequantise(codes: Tensor, scales: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Return the rows [..., head_dim]; computed in float32 and rounded to `dtype` once."""
    if bits == 4:
        codes = torch.cat([codes & 15, codes >> 4], dim=-1)
    scale, minimum = scales.float().chunk(2, dim=-1)
    # Two passes: addcmul of a broadcast scale and minimum takes three times as long on a CPU.
    return codes.float().mul_(scale).add_(minimum).to(dtype)


def codes_per_row(head_dim: int, bits: int) -> int:
    """Bytes of a row's codes."""
    return head_dim * bits // 8


def round_towards(bound: float, x: Tensor) -> Tensor:
    """Round float32 to SCALES_DTYPE, and never to the other side of x than `bound`."""
    nearest = x.to(SCALES_DTYPE)
    is_before = nearest < x if bound > 0 else nearest > x
    return torch.where(
        is_before, torch.nextafter(nearest, torch.full_like(nearest, bound)), nearest
    )
