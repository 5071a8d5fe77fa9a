"""LayerNorm.

    normed = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias

In float32, rounded once. A row stays in registers, so its mean is taken before its deviations are
squared, which costs no second read and loses nothing where the mean is large.
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
def _layer_norm_kernel(
    # pointers
    x_ptr, weight_ptr, bias_ptr, normed_ptr,
    # sizes
    num_rows, size, eps,
    # strides
    x_stride,
    # constants
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    within = columns < size
    mask = (rows < num_rows)[:, None] & within[None, :]
    x = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], mask=mask, other=0.0)
    x = x.to(tl.float32)  # [ROWS, COLUMNS]
    mean = tl.sum(x, axis=1) / size
    x = tl.where(within[None, :], x - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / size + eps)
    weight = tl.load(weight_ptr + columns, mask=within, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=within, other=0.0).to(tl.float32)
    normed = x * scale[:, None] * weight[None, :] + bias[None, :]
    normed_ptrs = normed_ptr + rows[:, None] * size + columns[None, :]
    tl.store(normed_ptrs, normed.to(normed_ptr.dtype.element_ty), mask=mask)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Norm the last dimension of x [..., size]; the result is contiguous."""
    size = x.shape[-1]
    assert weight.shape == bias.shape == (size,)
    assert weight.is_contiguous() and bias.is_contiguous()
    normed = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = x if x.ndim == 2 and x.stride(1) == 1 else x.reshape(-1, size)
    if len(rows) == 0:
        return normed
    tile = row_tile(size)
    _layer_norm_kernel[(triton.cdiv(len(rows), tile.rows),)](
        x_ptr=rows,
        weight_ptr=weight,
        bias_ptr=bias,
        normed_ptr=normed,
        num_rows=len(rows),
        size=size,
        eps=eps,
        x_stride=rows.stride(0),
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        num_warps=tile.num_warps,
        num_stages=1,
    )
    return normed


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The same in plain torch."""
    return F.layer_norm(x.float(), weight.shape, weight.float(), bias.float(), eps).to(x.dtype)


def compile_cases() -> list[CompileCase]:
    """Widths of CLIP's, Qwen2-VL's and InternVL's towers."""
    return [_compile_case(size, dtype) for size, dtype in ((1024, "bf16"), (1280, "bf16"))] + [
        _compile_case(3200, "bf16"),
        _compile_case(1280, "fp32"),
    ]


def _compile_case(size: int, dtype: str) -> CompileCase:
    tile = row_tile(size)
    pointers = {f"{name}_ptr": f"*{dtype}" for name in ("x", "weight", "bias", "normed")}
    integers = ("num_rows", "size", "x_stride")
    return CompileCase(
        name=f"layer_norm {dtype} {size}",
        kernel=_layer_norm_kernel,
        signature={**pointers, **dict.fromkeys(integers, "i32"), "eps": "fp32"},
        constants={"ROWS": tile.rows, "COLUMNS": tile.columns},
        num_warps=tile.num_warps,
        num_stages=1,
        aligned=(*pointers, "size", "x_stride"),
    )
