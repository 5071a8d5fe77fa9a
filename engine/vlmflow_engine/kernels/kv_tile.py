"""Tiles of the paged KV cache inside Triton kernels: what decode and prefill attention share.

A tile is what one page holds of one KV head, [page, lanes]: keys or values of `page` tokens,
head_dim padded to a power of two. A page's number is one scalar, so a tile's addresses are affine
and its rows are read in 128-bit loads.

What is stored (kernels/kv_quant.py, kernels/kv_float8.py) becomes a tile of numbers that the dot's
dtype holds exactly, and two numbers a token that never touch the elements:

    row = tile * scale + offset
    q . row    = scale * (q . tile) + offset * sum(q)          -> score_tile
    sum p row  = sum (p * scale) tile + sum p * offset         -> weigh_tile

Codes of 8 bits are centred first (0 to 255 become -128 to 127), and `offset` makes up for it: p *
scale is rounded to the dot's dtype, and its error grows with the codes it is multiplied by.

4 bits: byte i holds elements i and i + head_dim / 2. They are left side by side, lanes 2i and
2i + 1: no element changes its thread. So lanes are no elements; `tile_elements` tells which they
are to who loads queries and stores outputs.

Nothing is read of tokens that are not visible, nor beside head_dim: what stands for it in a tile is
finite, so a weight or a query of zero makes nothing of it, whatever lies in the cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmflow_engine.kernels.layer_kv_cache import PagedRows

# Formats, as kernels are told them.
ROWS, INT8, INT4, FLOAT8 = "rows", "int8", "int4", "float8"


def kv_format(rows: PagedRows) -> str:
    """Say how keys or values are stored."""
    if rows.scales is None:
        return ROWS
    if rows.rows.dtype == torch.float8_e4m3fn:
        return FLOAT8
    return {8: INT8, 4: INT4}[rows.bits]


def kernel_arguments(rows: PagedRows) -> tuple[Tensor, Tensor]:
    """Return what kernels get as rows_ptr and scales_ptr; both must be contiguous.

    Numbers of bfloat16 are read in pairs of 32 bits: a scale and a minimum, or two rows' scales.
    """
    assert rows.rows.is_contiguous()
    if rows.scales is None:
        return rows.rows, rows.rows  # the second is never read
    assert rows.scales.is_contiguous()
    return rows.rows, rows.scales.view(-1).view(torch.int32)


def pointer_types(kv_format: str, dtype: str) -> tuple[str, str]:
    """Return the types of rows_ptr and scales_ptr for a CompileCase; dtype: the model's."""
    return {
        ROWS: (f"*{dtype}", f"*{dtype}"),
        INT8: ("*u8", "*i32"),
        INT4: ("*u8", "*i32"),
        FLOAT8: ("*fp8e4nv", "*i32"),
    }[kv_format]


def num_lanes(head_dim: int) -> int:
    """Lanes of a tile: head_dim padded to a power of two."""
    return int(triton.next_power_of_2(head_dim))


@triton.jit
def tile_elements(HEAD_DIM: tl.constexpr, LANES: tl.constexpr, FORMAT: tl.constexpr):
    """Return which element of head_dim each lane holds [LANES], and whether it holds one."""
    lanes = tl.arange(0, LANES)
    elements = lanes // 2 + lanes % 2 * (HEAD_DIM // 2) if FORMAT == "int4" else lanes
    return elements, lanes < HEAD_DIM


@triton.jit
def first_row(block, head, num_kv_heads, PAGE: tl.constexpr):
    """Return a page's first row of a head; rows are counted over [blocks, page, heads], int64."""
    return block.to(tl.int64) * (PAGE * num_kv_heads) + head


@triton.jit
def load_tile(
    rows_ptr,
    row,  # first_row of the page
    is_visible,  # [PAGE] of its tokens
    num_kv_heads,
    PAGE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    LANES: tl.constexpr,
    FORMAT: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
):
    """Return a tile [PAGE, LANES] in the dot's dtype."""
    WIDTH: tl.constexpr = HEAD_DIM // 2 if FORMAT == "int4" else HEAD_DIM
    PADDED: tl.constexpr = LANES // 2 if FORMAT == "int4" else LANES
    tokens = tl.arange(0, PAGE)
    places = tl.arange(0, PADDED)
    offsets = tokens[:, None] * (num_kv_heads * WIDTH) + places[None, :]
    mask = is_visible[:, None]
    if PADDED != WIDTH:
        mask = mask & (places < WIDTH)[None, :]
    stored = tl.load(rows_ptr + row * WIDTH + offsets, mask=mask, other=0.0)
    if FORMAT == "int8":
        # Their upper bit flipped, codes less 128 are signed bytes. The detour through three
        # dimensions keeps values from being read byte by byte in the order of the dot's operand:
        # 64 loads of 8 bits less a thread and page.
        centred = (stored ^ 0x80).to(tl.int8, bitcast=True)
        split = centred.reshape(PAGE, PADDED // 16, 16).to(DOT_DTYPE)
        tile = split.reshape(PAGE, LANES)
    elif FORMAT == "int4":
        low = (stored & 15).to(tl.int8, bitcast=True)
        high = (stored >> 4).to(tl.int8, bitcast=True)
        tile = tl.join(low.to(DOT_DTYPE), high.to(DOT_DTYPE)).reshape(PAGE, LANES)
    elif FORMAT == "float8":
        # By way of float16, which it is converted to in pairs, and float32: from float16 to
        # bfloat16 there is but a slow instruction.
        tile = stored.to(tl.float16).to(tl.float32).to(DOT_DTYPE)
    else:
        tile = stored.to(DOT_DTYPE)
    return tile


@triton.jit
def load_scales(
    scales_ptr,
    row,  # first_row of the page
    is_visible,  # [PAGE] of its tokens
    num_kv_heads,
    PAGE: tl.constexpr,
    FORMAT: tl.constexpr,
):
    """Return each token's scale and offset [PAGE] float32; zeros where nothing is visible."""
    places = row + tl.arange(0, PAGE) * num_kv_heads
    if FORMAT == "rows":
        scale = tl.full([PAGE], 1.0, tl.float32)
        offset = tl.full([PAGE], 0.0, tl.float32)
    elif FORMAT == "float8":
        # Two rows' scales: 16 bits alone cannot be copied asynchronously.
        pair = tl.load(scales_ptr + places // 2, mask=is_visible, other=0)
        half = tl.where(places % 2 == 0, pair << 16, pair & -65536)
        scale = half.to(tl.float32, bitcast=True)
        offset = tl.full([PAGE], 0.0, tl.float32)
    else:
        # bfloat16 is the upper half of a float32; of the pair, the scale lies lower.
        pair = tl.load(scales_ptr + places, mask=is_visible, other=0)
        scale = (pair << 16).to(tl.float32, bitcast=True)
        minimum = (pair & -65536).to(tl.float32, bitcast=True)
        offset = minimum + 128.0 * scale if FORMAT == "int8" else minimum
    return scale, offset


@triton.jit
def score_tile(q, q_sum, keys, scale, offset, FORMAT: tl.constexpr):
    """Return q . keys [rows, PAGE] float32.

    q      [rows, LANES] in the dot's dtype, zeros in lanes that hold no element
    q_sum  [rows] float32, the sums of q as it is here
    """
    scores = tl.dot(q, tl.trans(keys), input_precision="ieee")
    if FORMAT != "rows":
        scores = scores * scale[None, :]
        if FORMAT != "float8":
            scores += q_sum[:, None] * offset[None, :]
    return scores


@triton.jit
def weigh_tile(p, values, scale, offset, out, out_offset, FORMAT: tl.constexpr):
    """Return out [rows, LANES] and out_offset [rows] with the values added, weighed by p.

    p  [rows, PAGE] float32. The attended row is out + out_offset, the latter on every lane.
    """
    if FORMAT != "rows":
        if FORMAT != "float8":
            out_offset += tl.sum(p * offset[None, :], axis=1)
        p = p * scale[None, :]
    return tl.dot(p.to(values.dtype), values, out, input_precision="ieee"), out_offset
