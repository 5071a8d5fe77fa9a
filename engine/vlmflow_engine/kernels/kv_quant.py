"""Keys and values in 8 or 4 bits, in plain torch.

A row is one token's key (or value) of one head, [head_dim]. It is stored as whole numbers between
its own smallest and largest element:

    code  = clamp(round((x - minimum) / scale), 0, 2**bits - 1)
    x    ~= code * scale + minimum

codes    uint8 [..., head_dim]; for 4 bits [..., head_dim / 2], where byte i holds element i in its
         low half and element i + head_dim / 2 in its high half
scales   bfloat16 [..., 2]: scale, minimum

Why so, on rows of the shapes checkpoint, of Gaussians, and of Gaussians with outlying channels as
keys have them (root mean square error, benchmarks/kv_quant.py):
- A scale and a minimum rather than one scale around zero: 11 to 41 % less error at 8 bits, 15 to
  45 % at 4, since a row seldom reaches as far below zero as above.
- bfloat16 rather than float32: half the bytes for 1 to 4 % more error at 8 bits and none at 4, for
  codes are made with the rounded numbers. float16 would be as good, but ends at 65504.

The error of an element is half of its row's scale at most, or 2**-8 of the row's largest magnitude
where that is more: what the rounded scale and minimum leave out is clamped.
"""

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
    largest_code = 2**bits - 1
    low, high = torch.aminmax(x, dim=-1, keepdim=True)
    minimum = low.to(SCALES_DTYPE)
    scale = ((high - minimum) / largest_code).clamp_min(0).to(SCALES_DTYPE)
    codes = (x - minimum).div_(torch.where(scale == 0, 1, scale))
    codes = codes.round_().clamp_(0, largest_code).to(torch.uint8)
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
