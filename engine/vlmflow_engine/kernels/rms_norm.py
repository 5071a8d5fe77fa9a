"""RMSNorm, and RMSNorm of a sum that is kept as well.

    total  = x + residual                                   (where there is a residual)
    normed = total / sqrt(mean(total^2) + eps) * weight

All in float32; total is rounded to the dtype before it is normed, for that is what later layers
get, and normed is rounded once. x is read and both are written in one pass.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from vlmflow_engine.kernels.compile_case import CompileCase
from vlmflow_engine.kernels.row_tiles import row_tile


# One kernel for any number of rows: Triton would make others of 1 and of multiples of 16.
@triton.jit(do_not_specialize=["num_rows"])
def _rms_norm_kernel(
    # pointers
    x_ptr, residual_ptr, weight_ptr, total_ptr, normed_ptr,
    # sizes; a row is one of `inner` of an outer index
    num_rows, inner, size, eps,
    # strides
    x_outer_stride, x_inner_stride,
    # constants
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    mask = (rows < num_rows)[:, None] & (columns < size)[None, :]
    outer = (rows // inner).to(tl.int64)
    x_rows = outer * x_outer_stride + (rows % inner) * x_inner_stride
    x = tl.load(x_ptr + x_rows[:, None] + columns[None, :], mask=mask, other=0.0)
    # Of everything but x: rows one behind another.
    places = rows.to(tl.int64)[:, None] * size + columns[None, :]
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + places, mask=mask, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
        tl.store(total_ptr + places, x, mask=mask)
    x = x.to(tl.float32)  # [ROWS, COLUMNS]
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / size + eps)
    weight = tl.load(weight_ptr + columns, mask=columns < size, other=0.0).to(tl.float32)
    normed = x * scale[:, None] * weight[None, :]
    tl.store(normed_ptr + places, normed.to(normed_ptr.dtype.element_ty), mask=mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Norm the last dimension of x [..., size]; the result is contiguous.

    Rows of a merged projection's slice [num_tokens, num_heads, head_dim] are read where they lie.
    """
    return _launch(x, None, weight, eps)[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the norm of x + residual, and the sum; both [..., size] of one dtype."""
    assert residual.shape == x.shape and residual.dtype == x.dtype
    return _launch(x, residual.contiguous(), weight, eps)


def _launch(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    size = x.shape[-1]
    assert weight.shape == (size,) and weight.is_contiguous()
    normed = torch.empty_like(x, memory_format=torch.contiguous_format)
    total = normed if residual is None else torch.empty_like(normed)
    rows = x if x.ndim == 3 and x.stride(2) == 1 else x.reshape(-1, 1, size)
    num_rows = rows.shape[0] * rows.shape[1]
    if num_rows == 0:
        return normed, total
    tile = row_tile(size)
    _rms_norm_kernel[(triton.cdiv(num_rows, tile.rows),)](
        x_ptr=rows,
        residual_ptr=x if residual is None else residual,
        weight_ptr=weight,
        total_ptr=total,
        normed_ptr=normed,
        num_rows=num_rows,
        inner=rows.shape[1],
        size=size,
        eps=eps,
        x_outer_stride=rows.stride(0),
        x_inner_stride=rows.stride(1),
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        HAS_RESIDUAL=residual is not None,
        num_warps=tile.num_warps,
        num_stages=1,
    )
    return normed, total


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same in plain torch."""
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)


def add_rms_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The same in plain torch."""
    total = x + residual
    return rms_norm_reference(total, weight, eps), total


def compile_cases() -> list[CompileCase]:
    """Hidden sizes of 2 to 8 thousand, and heads."""
    return [
        _compile_case(size, dtype, has_residual)
        for size, dtype, has_residual in (
            (3584, "bf16", True),
            (3584, "bf16", False),
            (8192, "bf16", True),
            (128, "bf16", False),
            (3584, "fp32", True),
        )
    ]


def _compile_case(size: int, dtype: str, has_residual: bool) -> CompileCase:
    tile = row_tile(size)
    pointers = {
        f"{name}_ptr": f"*{dtype}" for name in ["x", "residual", "weight", "total", "normed"]
    }
    integers = ("num_rows", "inner", "size", "x_outer_stride", "x_inner_stride")
    return CompileCase(
        name=f"rms_norm {dtype} {size}{' residual' if has_residual else ''}",
        kernel=_rms_norm_kernel,
        signature={**pointers, **dict.fromkeys(integers, "i32"), "eps": "fp32"},
        constants={"ROWS": tile.rows, "COLUMNS": tile.columns, "HAS_RESIDUAL": has_residual},
        num_warps=tile.num_warps,
        num_stages=1,
        aligned=(*pointers, "size", "x_outer_stride", "x_inner_stride"),
    )
