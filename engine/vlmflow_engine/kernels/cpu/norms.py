"""RMSNorm and LayerNorm on a CPU: sums in float32, rounded once, one pass over memory.

The same formulas as in kernels/rms_norm.py and kernels/layer_norm.py, which hold their references.
A row has the same bits whatever else is in the step, and on any number of threads.
"""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vlmflow_engine.kernels.cpu.library import CpuLibrary, cpu_library
from vlmflow_engine.kernels.cpu.rows import num_threads_for


class _Norm(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "residual", "weight", "bias", "total", "out")),
        *(
            (name, ctypes.c_int64)
            for name in ("num_rows", "inner", "size", "x_outer_stride", "x_inner_stride")
        ),
        ("eps", ctypes.c_float),
        ("is_bfloat16", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
    ]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Norm the last dimension of x [..., size]; the result is contiguous.

    Rows of a merged projection's slice [num_tokens, num_heads, head_dim] are read where they lie.
    """
    return _norm(x, weight, eps)[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the norm of x + residual, and the sum; both [..., size] of one dtype."""
    assert residual.shape == x.shape and residual.dtype == x.dtype
    return _norm(x, weight, eps, residual=residual.contiguous())


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Norm the last dimension of x [..., size]; the result is contiguous."""
    return _norm(x, weight, eps, bias=bias)[0]


def _norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the norm and, where there is a residual, the sum."""
    size = x.shape[-1]
    for row in (weight, bias):
        assert row is None or (row.shape == (size,) and row.is_contiguous())
        assert row is None or row.dtype == x.dtype
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    total = out if residual is None else torch.empty_like(out)
    rows = x if x.ndim == 3 else x.reshape(-1, 1, size)
    assert rows.stride(2) == 1
    call = _Norm(
        rows.data_ptr(),
        None if residual is None else residual.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        total.data_ptr(),
        out.data_ptr(),
        rows.shape[0] * rows.shape[1],
        rows.shape[1],
        size,
        rows.stride(0),
        rows.stride(1),
        eps,
        x.dtype == torch.bfloat16,
        num_threads_for(x.numel()),
    )
    _function()(call)
    return out, total


@cache
def _function() -> Any:
    library = cpu_library()
    assert isinstance(library, CpuLibrary)
    return library.function("vlmflow_norm", ctypes.POINTER(_Norm))
