"""Logits as whole numbers that sort alike, in Triton: what runner/ranking.py does on the host."""

import triton
import triton.language as tl

NOTHING = -2139095041  # the key of minus infinity
INFINITY = 0x7F800000
NOT_A_NUMBER = 0x7FFFFFFF
LOWEST = -(2**31)  # below the key of any logit


@triton.jit
def sort_key(x):
    """The int32 key of float32 x; the two zeros are equal, and a NaN is above infinity."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(x == x, key, 0x7FFFFFFF)


@triton.jit
def from_sort_key(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
