"""A linear layer whose rows do not know each other: y = x W^T + bias.

A library chooses its GEMM by the number of rows, and each sums up in an order of its own, so the
last bits of a row depend on the batch. Here the tile, and with it the order of every sum, depends
on the dtype alone: BLOCK_K products at a time from the first to the last, in float32, without
split-K. A row's output is the same bit by bit alone and among others, at whatever place.

Programs are ordered such that neighbours share columns of the weight, which then come from the L2.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from vlmflow_engine.kernels.compile_case import CompileCase
from vlmflow_engine.kernels.dispatch import is_interpreted


class _Tile(NamedTuple):
    block_m: int  # rows of x
    block_n: int  # rows of the weight
    block_k: int
    group_m: int  # tiles of rows that are computed side by side for one tile of the weight
    num_warps: int
    num_stages: int


def _tile(dtype: torch.dtype) -> _Tile:
    """The tile of a dtype, whatever the shapes.

    64 rows are the least that wgmma takes, and a decoding step has few. No GPU has measured others
    yet (benchmarks/kernels/fixed_tile_linear.py).
    """
    if dtype == torch.float32:  # no tensor cores: their float32 has 10 bits
        return _Tile(block_m=32, block_n=64, block_k=32, group_m=8, num_warps=4, num_stages=3)
    return _Tile(block_m=64, block_n=128, block_k=64, group_m=8, num_warps=4, num_stages=4)


@triton.jit
def _add_product(x, weight, out, IS_INTERPRETED: tl.constexpr):
    """out [BLOCK_M, BLOCK_N] + x [BLOCK_M, BLOCK_K] weight [BLOCK_K, BLOCK_N]"""
    if IS_INTERPRETED:
        # NumPy's product of matrices sums a row up by its place, and knows no bfloat16.
        products = x.to(tl.float32)[:, :, None] * weight.to(tl.float32)[None, :, :]
        return out + tl.sum(products, axis=1)
    else:
        return tl.dot(x, weight, out, input_precision="ieee")


# One kernel for any number of rows: Triton would make others of 1 and of multiples of 16.
@triton.jit(do_not_specialize=["num_rows"])
def _fixed_tile_linear_kernel(
    # pointers
    x_ptr, weight_ptr, bias_ptr, out_ptr,
    # sizes
    num_rows, out_features, in_features,
    # strides
    x_stride, weight_stride,
    # constants
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    HAS_BIAS: tl.constexpr, IS_EVEN: tl.constexpr, IS_INTERPRETED: tl.constexpr,
):  # fmt: skip
    tiles_m = tl.cdiv(num_rows, BLOCK_M)
    tiles_n = tl.cdiv(out_features, BLOCK_N)
    tile = tl.program_id(0)
    group = tile // (GROUP_M * tiles_n)
    group_size = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    tile_m = group * GROUP_M + tile % (GROUP_M * tiles_n) % group_size
    tile_n = tile % (GROUP_M * tiles_n) // group_size

    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # What lies beyond the end is some other row or column, which is not stored.
    x_rows = (rows % num_rows).to(tl.int64)
    weight_rows = (columns % out_features).to(tl.int64)
    ks = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + x_rows[:, None] * x_stride + ks[None, :]
    weight_ptrs = weight_ptr + weight_rows[None, :] * weight_stride + ks[:, None]
    out = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, in_features, BLOCK_K):
        if IS_EVEN:
            x = tl.load(x_ptrs + start)  # [BLOCK_M, BLOCK_K]
            weight = tl.load(weight_ptrs + start)  # [BLOCK_K, BLOCK_N]
        else:
            within = ks < in_features - start
            x = tl.load(x_ptrs + start, mask=within[None, :], other=0.0)
            weight = tl.load(weight_ptrs + start, mask=within[:, None], other=0.0)
        out = _add_product(x, weight, out, IS_INTERPRETED)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + columns, mask=columns < out_features, other=0.0)
        out += bias.to(tl.float32)[None, :]
    out_ptrs = out_ptr + rows.to(tl.int64)[:, None] * out_features + columns[None, :]
    mask = (rows < num_rows)[:, None] & (columns < out_features)[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=mask)


def fixed_tile_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + bias, [..., out_features]; sums in float32, rounded once.

    x       [..., in_features]
    weight  [out_features, in_features], last dimension contiguous
    bias    [out_features]
    """
    out_features, in_features = weight.shape
    assert x.shape[-1] == in_features and x.dtype == weight.dtype and weight.stride(1) == 1
    assert bias is None or (bias.shape == (out_features,) and bias.is_contiguous())
    out = x.new_empty((*x.shape[:-1], out_features))
    rows = x.reshape(-1, in_features)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    if len(rows) == 0:
        return out
    tile = _tile(x.dtype)
    num_tiles = triton.cdiv(len(rows), tile.block_m) * triton.cdiv(out_features, tile.block_n)
    _fixed_tile_linear_kernel[(num_tiles,)](
        x_ptr=rows,
        weight_ptr=weight,
        bias_ptr=weight if bias is None else bias,
        out_ptr=out,
        num_rows=len(rows),
        out_features=out_features,
        in_features=in_features,
        x_stride=rows.stride(0),
        weight_stride=weight.stride(0),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        GROUP_M=tile.group_m,
        HAS_BIAS=bias is not None,
        IS_EVEN=in_features % tile.block_k == 0,
        IS_INTERPRETED=is_interpreted(),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return out


def fixed_tile_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same in plain torch, but for the order of sums."""
    out = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    return out.to(x.dtype)


def compile_cases() -> list[CompileCase]:
    """Of both dtypes; with a last step of K that is not whole, and without."""
    return [
        _compile_case(dtype, has_bias, is_even)
        for dtype, has_bias, is_even in (
            (torch.bfloat16, True, True),
            (torch.bfloat16, False, True),
            (torch.bfloat16, True, False),
            (torch.float32, True, True),
        )
    ]


def _compile_case(dtype: torch.dtype, has_bias: bool, is_even: bool) -> CompileCase:
    tile, name = _tile(dtype), "fp32" if dtype == torch.float32 else "bf16"
    pointers = {f"{name_}_ptr": f"*{name}" for name_ in ("x", "weight", "bias", "out")}
    integers = ("num_rows", "out_features", "in_features", "x_stride", "weight_stride")
    tail = "" if is_even else " uneven"
    return CompileCase(
        name=f"fixed_tile_linear {name}{' bias' if has_bias else ''}{tail}",
        kernel=_fixed_tile_linear_kernel,
        signature={**pointers, **dict.fromkeys(integers, "i32")},
        constants={
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "BLOCK_K": tile.block_k,
            "GROUP_M": tile.group_m,
            "HAS_BIAS": has_bias,
            "IS_EVEN": is_even,
            "IS_INTERPRETED": False,
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        aligned=(*pointers, "out_features", "in_features", "x_stride", "weight_stride"),
    )
