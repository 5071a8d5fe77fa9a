"""Linear layers over a checkpoint's tensors, merged where several share their input."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmflow_engine.layers.linear_weight import FixedTileWeight, LinearWeight, PlainWeight
from vlmflow_engine.layers.lora import AdapterRows, LoraWeights, add_adapters


class Linear:
    """y = x W^T + b, and for the rows of an adapter what it adds."""

    def __init__(
        self, weight: LinearWeight | Tensor, bias: Tensor | None = None, name: str = ""
    ) -> None:
        """weight  a tensor [out_features, in_features] stays as it is"""
        self.weight = PlainWeight(weight) if isinstance(weight, Tensor) else weight
        self.bias = bias  # [out_features]
        # The checkpoint's layers that it is made of, and how many outputs each of them has.
        self.parts: list[tuple[str, int]] = [(name, self.weight.shape[0])]
        self.adapters: dict[str, LoraWeights] = {}  # filled by models.adapters

    @classmethod
    def merged(cls, parts: list["Linear"]) -> "Linear":
        """Stack layers that read the same input: one GEMM instead of several."""
        biases = [part.bias for part in parts if part.bias is not None]
        assert len(biases) in (0, len(parts))
        merged = cls(_stack([part.matrix for part in parts]), _stack(biases) if biases else None)
        merged.parts = [item for part in parts for item in part.parts]
        return merged

    @property
    def matrix(self) -> Tensor:
        """[out_features, in_features], of a layer whose weights are as they were stored."""
        assert isinstance(self.weight, PlainWeight)
        return self.weight.tensor

    def make_invariant(self) -> None:
        """From now on compute a row the same bit by bit, however many others there are."""
        self.weight = FixedTileWeight(self.matrix)

    def __call__(self, x: Tensor, adapters: Sequence[AdapterRows] | None = None) -> Tensor:
        """x may have any leading dimensions; with adapters it is [num_tokens, in_features]."""
        y = self.weight(x, self.bias)
        if adapters is not None:
            add_adapters(y, x, self.adapters, adapters)
        return y


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Join tensors by rows: without a copy where they lie one behind another, as when just read."""
    first = tensors[0]
    end = first.data_ptr()
    for tensor in tensors:
        is_next = tensor.data_ptr() == end and tensor.is_contiguous()
        if not is_next or tensor.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return torch.cat(list(tensors))
        end += tensor.nbytes
    shape = (sum(map(len, tensors)), *first.shape[1:])
    return first.as_strided(shape, first.stride(), first.storage_offset())
