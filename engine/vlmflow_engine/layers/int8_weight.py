"""Weights in 8 bits, and inputs rounded to 8 bits as they come: W8A8, with nothing calibrated.

Each output has a scale for its weights, each row of an input one for its numbers: the largest
magnitude is 127. Products are added up in whole numbers.
"""

import re

import torch
from torch import Tensor

from vlmflow_engine.kernels.cpu.linear import LinearFunctions, can_gate, packed_bytes
from vlmflow_engine.layers.linear_weight import Allocate, LinearWeight, WeightFormat
from vlmflow_engine.layers.row_sizes import pad_rows

_ROWS = 4096  # of a matrix that are rounded at a time


class Int8Weight:
    """Multiplied by our C++ kernel, from bfloat16 to bfloat16."""

    def __init__(self, weight: Tensor, functions: LinearFunctions, allocate: Allocate) -> None:
        self.shape: tuple[int, int] = (weight.shape[0], weight.shape[1])
        self._functions = functions
        self._packed = allocate(packed_bytes(*self.shape, torch.int8.itemsize))
        self._scales = torch.empty(self.shape[0])
        functions.pack_int8(weight.contiguous(), self._packed, self._scales)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._functions.linear_int8(x, self._packed, self._scales, bias)

    def gated(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor | None:
        if not can_gate(activation, self.shape[0]):
            return None
        return self._functions.linear_int8(x, self._packed, self._scales, bias, is_gated=True)


class OneDnnInt8Weight(LinearWeight):
    """Multiplied by oneDNN, from any dtype to the same."""

    def __init__(self, weight: Tensor) -> None:
        self.shape: tuple[int, int] = (weight.shape[0], weight.shape[1])
        rounded = [quantise_rows(part) for part in torch.split(weight, _ROWS)]
        codes = torch.cat([codes for codes, _ in rounded])
        self._scales = torch.cat([scales for _, scales in rounded])
        # oneDNN takes inputs of 0 to 255: 128 is added to ours, and what that makes is taken away.
        self._offsets = codes.sum(dim=1, dtype=torch.int32) * self._scales * 128
        self._zeros = torch.zeros(self.shape[0], dtype=torch.int32)
        self._packed = torch.ops.onednn.qlinear_prepack(codes, None)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        codes, scales = quantise_rows(pad_rows(rows))
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            (codes ^ -128).view(torch.uint8),  # the same as to add 128
            1.0,  # scale and zero of the input
            0,
            self._packed,
            self._scales,
            self._zeros,
            None,
            1.0,  # scale and zero of the output
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        y = y.sub_(self._offsets).mul_(scales[:, None])
        if bias is not None:
            y += bias
        return y[: len(rows)].to(x.dtype).view(*x.shape[:-1], self.shape[0])


# Layers of decoder and vision tower, and the output head. On a random model of 0.27 B they make
# logits wrong by 5 % (1.2 % in bfloat16) and image rows by 1.4 % (1.0 %). Patch embedding and
# projector stay as they are: with them it is 2.5 %, and they are small. Figures of
# benchmarks/results/cpu_linear.md.
_QUANTISED = re.compile(r"text\.layers\.|lm_head|vision\.(encoder\.layers?|blocks)\.")


class Int8Format:
    """The large layers in 8 bits, the others in another format."""

    is_quantised = True

    def __init__(self, functions: LinearFunctions | None, others: WeightFormat) -> None:
        self._functions = functions
        self._others = others

    def __call__(self, weight: Tensor, name: str, allocate: Allocate) -> LinearWeight:
        if not is_in_8_bits(name):
            return self._others(weight, name, allocate)
        if self._functions is not None and weight.dtype == torch.bfloat16:
            return Int8Weight(weight, self._functions, allocate)
        return OneDnnInt8Weight(weight)

    def is_packed(self, name: str) -> bool:
        return is_in_8_bits(name) or self._others.is_packed(name)


def is_in_8_bits(name: str) -> bool:
    """Whether a layer's weights are kept in 8 bits."""
    return _QUANTISED.match(name) is not None


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, size] -> codes [rows, size] int8, and float32 scales [rows].

    A row that is not finite has a scale that is none, so that what is made of it is NaN.
    """
    values = x.float()
    top = values.abs().amax(dim=1)
    # Divided, as the C++ kernel does: `127 / top` is 127 times a reciprocal, and rounds twice.
    factor = torch.where(top > 0, top.new_full((), 127) / top, 0)
    codes = (values * factor[:, None]).round().nan_to_num(0, 127, -127)
    return codes.to(torch.int8), torch.where(top.isfinite(), top / 127, torch.nan)
