"""Activations on a CPU, in float32, rounded once, in one pass over memory.

The same formulas as in kernels/gated_activation.py, which holds their reference; torch needs three
passes for a gated one, and for quick_gelu.
"""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vlmflow_engine.kernels.cpu.library import CpuLibrary, cpu_library
from vlmflow_engine.kernels.cpu.rows import num_threads_for

# By their names in a checkpoint's config; the others take an error function, or no time at all.
ACTIVATIONS = ("silu", "quick_gelu", "gelu_pytorch_tanh")


class _Activation(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "out")),
        *((name, ctypes.c_int64) for name in ("num_rows", "size", "x_stride")),
        *((name, ctypes.c_int32) for name in ("name", "is_gated", "is_bfloat16", "num_threads")),
    ]


def activate(x: Tensor, name: str) -> Tensor:
    """Return act(x), contiguous; name is one of ACTIVATIONS."""
    return _activate(x, name, is_gated=False)


def gated_activation(gate_up: Tensor, name: str) -> Tensor:
    """Return act(gate) * up [..., size] of gate_up [..., 2 * size]; name is one of ACTIVATIONS."""
    assert gate_up.shape[-1] % 2 == 0
    return _activate(gate_up, name, is_gated=True)


def _activate(x: Tensor, name: str, *, is_gated: bool) -> Tensor:
    size = x.shape[-1] // (2 if is_gated else 1)
    out = x.new_empty((*x.shape[:-1], size))
    rows = x.reshape(-1, x.shape[-1])
    assert rows.stride(1) == 1
    call = _Activation(
        rows.data_ptr(),
        out.data_ptr(),
        len(rows),
        size,
        rows.stride(0),
        ACTIVATIONS.index(name),
        is_gated,
        x.dtype == torch.bfloat16,
        num_threads_for(x.numel()),
    )
    _function()(call)
    return out


@cache
def _function() -> Any:
    library = cpu_library()
    assert isinstance(library, CpuLibrary)
    return library.function("vlmflow_activate", ctypes.POINTER(_Activation))
