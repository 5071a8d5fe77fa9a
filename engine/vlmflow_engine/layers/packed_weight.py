"""Weights in the layout that a CPU multiplies fastest, in the dtype they have.

torch's own linear layer brings its weights into such a layout at every call.
"""

import torch
from torch import Tensor

from vlmflow_engine.kernels.cpu.linear import LinearFunctions, can_gate, packed_bytes
from vlmflow_engine.layers.linear_weight import Allocate, LinearWeight
from vlmflow_engine.layers.row_sizes import pad_rows


class PackedWeight:
    """bfloat16, multiplied by our C++ kernel. in_features is even."""

    def __init__(self, weight: Tensor, functions: LinearFunctions, allocate: Allocate) -> None:
        self.shape: tuple[int, int] = (weight.shape[0], weight.shape[1])
        self._functions = functions
        self._packed = allocate(packed_bytes(*self.shape, weight.element_size()))
        functions.pack_bf16(weight.contiguous(), self._packed)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._functions.linear_bf16(x, self._packed, bias, self.shape[0])

    def gated(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor | None:
        if not can_gate(activation, self.shape[0]):
            return None
        return self._functions.linear_bf16(x, self._packed, bias, self.shape[0], is_gated=True)


class OneDnnWeight(LinearWeight):
    """float32 or bfloat16, multiplied by oneDNN."""

    def __init__(self, weight: Tensor) -> None:
        self.shape: tuple[int, int] = (weight.shape[0], weight.shape[1])
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            pad_rows(rows), self._packed, bias, "none", [], ""
        )
        return y[: len(rows)].view(*x.shape[:-1], self.shape[0])


class PackedFormat:
    """Every matrix packed: for our C++ kernel where it can be had, else for oneDNN."""

    is_quantised = False

    def __init__(self, functions: LinearFunctions | None) -> None:
        self._functions = functions

    def __call__(self, weight: Tensor, name: str, allocate: Allocate) -> LinearWeight:
        is_ours = weight.dtype == torch.bfloat16 and weight.shape[1] % 2 == 0
        if self._functions is not None and is_ours:
            return PackedWeight(weight, self._functions, allocate)
        return OneDnnWeight(weight)

    def is_packed(self, name: str) -> bool:
        return True
