"""How Triton kernels round to what the KV cache stores: as torch does, to the bit.

Divisions are IEEE's. Rounding is done on the bits of a float32, so a GPU that has no float8 writes
them too, and the interpreter, which rounds to bfloat16 in its own way, gets the same.
"""

import triton
import triton.language as tl


@triton.jit
def rounded_to_bfloat16(x, IS_UP: tl.constexpr):
    """The bits of x, float32, rounded to a bfloat16 that is not below it, or not above it."""
    bits = x.to(tl.int32, bitcast=True)
    is_negative = bits < 0
    grows = ((bits & 0xFFFF) != 0) & ((is_negative == 0) if IS_UP else is_negative)
    bits = (bits & -65536) + tl.where(grows, 65536, 0)
    return tl.where(x != x, 0x7FC00000, bits)


@triton.jit
def divided(x, scale):
    """x / scale as IEEE has it; a scale of 0 is that of a row of equal elements."""
    return tl.div_rn(x, tl.broadcast_to(tl.where(scale == 0, 1.0, scale), x.shape))


@triton.jit
def whole(x):
    """Round 0 <= x < 2**22 to whole numbers, to even where in between: floats near 2**23 are."""
    return (x + 8388608.0).to(tl.int32, bitcast=True) & 0xFF


@triton.jit
def float8(x):
    """The bits of x, float32 with |x| <= 448, as float8_e4m3fn."""
    bits = x.to(tl.int32, bitcast=True)
    sign = (bits >> 24) & 0x80
    size = bits & 0x7FFFFFFF
    # 3 of 23 bits behind the point are kept, to even where in between; the exponent's bias is 7
    # instead of 127.
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2**-6 numbers are multiples of 2**-9, which floats near 2**14 are.
    tiny = (tl.abs(x) + 16384.0).to(tl.int32, bitcast=True) & 0xF
    code = tl.where(size < 0x3C800000, tiny, normal)
    # Only a NaN is larger, or infinite.
    return sign | tl.where(size > 0x43E80000, 0x7F, code)
