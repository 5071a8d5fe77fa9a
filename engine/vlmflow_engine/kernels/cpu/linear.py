"""Linear layers in C++ over packed weights, in bfloat16 or in 8 bits (linear.cpp)."""

from ctypes import c_int, c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from vlmflow_engine.kernels.cpu.library import CpuLibrary, cpu_library

_PANEL = 64  # outputs that lie together
_STEP = 4  # bytes of an output's weights that one instruction takes


class LinearFunctions:
    """What linear.cpp exports, over tensors. It holds nothing of a call."""

    def __init__(self, library: CpuLibrary) -> None:
        pointer, size = c_void_p, c_int64
        self._pack_bf16 = library.function("vlmflow_pack_bf16", pointer, pointer, size, size, c_int)
        self._pack_int8 = library.function(
            "vlmflow_pack_int8", pointer, pointer, pointer, size, size, c_int
        )
        self._linear_bf16 = library.function(
            "vlmflow_linear_bf16", *[pointer, size], *[pointer] * 3, *[size] * 3, c_int, c_int
        )
        self._linear_int8 = library.function(
            "vlmflow_linear_int8", *[pointer, size], *[pointer] * 5, *[size] * 3, c_int, c_int
        )

    def pack_bf16(self, weight: Tensor, packed: Tensor) -> None:
        """Bring weight [out_features, in_features], bfloat16, into `packed` [packed_bytes].

        in_features is even.
        """
        self._pack_bf16(
            weight.data_ptr(), packed.data_ptr(), *weight.shape, torch.get_num_threads()
        )

    def pack_int8(self, weight: Tensor, packed: Tensor, scales: Tensor) -> None:
        """The same in 8 bits; scales [out_features] float32 are written too."""
        self._pack_int8(
            weight.data_ptr(),
            packed.data_ptr(),
            scales.data_ptr(),
            *weight.shape,
            torch.get_num_threads(),
        )

    def linear_bf16(
        self,
        x: Tensor,
        packed: Tensor,
        bias: Tensor | None,
        out_features: int,
        *,
        is_gated: bool = False,
    ) -> Tensor:
        """x [..., in_features] -> [..., out_features], both bfloat16; bias [out_features] too.

        is_gated  see `can_gate`; then it is silu(first half) * second half, rounded once
        """
        rows = _rows(x)
        out_features = out_features // 2 if is_gated else out_features
        y = x.new_empty(len(rows), out_features)
        self._linear_bf16(
            rows.data_ptr(),
            rows.stride(0),
            packed.data_ptr(),
            None if bias is None else bias.data_ptr(),
            y.data_ptr(),
            *rows.shape,
            out_features,
            is_gated,
            torch.get_num_threads(),
        )
        return y.view(*x.shape[:-1], out_features)

    def linear_int8(
        self,
        x: Tensor,
        packed: Tensor,
        scales: Tensor,
        bias: Tensor | None,
        *,
        is_gated: bool = False,
    ) -> Tensor:
        """The same over weights in 8 bits, with each row of x rounded to 8 bits."""
        rows, out_features = _rows(x), len(scales) // 2 if is_gated else len(scales)
        num_rows, in_features = rows.shape
        y = x.new_empty(num_rows, out_features)
        step_bytes = -(-in_features // _STEP) * _STEP
        scratch = torch.empty(num_rows * (step_bytes + 8), dtype=torch.uint8)
        self._linear_int8(
            rows.data_ptr(),
            rows.stride(0),
            packed.data_ptr(),
            scales.data_ptr(),
            None if bias is None else bias.data_ptr(),
            y.data_ptr(),
            scratch.data_ptr(),
            num_rows,
            in_features,
            out_features,
            is_gated,
            torch.get_num_threads(),
        )
        return y.view(*x.shape[:-1], out_features)


def can_gate(activation: str, out_features: int) -> bool:
    """Whether a merged layer's gate and up become one output within the call."""
    return activation == "silu" and out_features % (2 * _PANEL) == 0


def linear_functions() -> LinearFunctions | None:
    """The functions; None where there is no library, or where oneDNN is the better choice."""
    library = cpu_library()
    if library is None or not library.function("vlmflow_has_linear", result=c_int)():
        return None
    return _functions(library)


@cache
def _functions(library: CpuLibrary) -> LinearFunctions:
    return LinearFunctions(library)


def packed_bytes(out_features: int, in_features: int, itemsize: int) -> int:
    """Memory of packed weights: outputs are filled up to whole panels, inputs to whole steps."""
    panels = -(-out_features // _PANEL)
    return panels * _PANEL * -(-in_features * itemsize // _STEP) * _STEP


def _rows(x: Tensor) -> Tensor:
    """x as [rows, in_features], each row in one piece."""
    assert x.dtype == torch.bfloat16
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()
