"""A linear layer's matrix: how it lies in memory, and what multiplies by it.

PlainWeight       as it is stored, by torch; on a GPU always
FixedTileWeight   as it is stored, the same bit by bit for any number of rows; on a GPU
packed_weight     in the layout that a CPU multiplies fastest; the stored one is given up
int8_weight       the same in 8 bits
"""

from collections.abc import Callable
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

# So many bytes of memory that stays, as a tensor of uint8.
Allocate = Callable[[int], Tensor]


class LinearWeight(Protocol):
    """y = x W^T + b for a W that is in there."""

    shape: tuple[int, int]  # out_features, in_features

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., in_features] -> [..., out_features]; bias [out_features]."""

    def gated(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor | None:
        """act(first half) * second half of those outputs, if that is one call; else None."""
        return None


class WeightFormat(Protocol):
    """How the weights of a model are kept."""

    is_quantised: bool  # fewer bits than they are stored in

    def __call__(self, weight: Tensor, name: str, allocate: Allocate) -> LinearWeight:
        """Keep a matrix [out_features, in_features].

        name      the engine's own, of the layer or the first of those that are merged in it
        allocate  memory for what is made of it
        """

    def is_packed(self, name: str) -> bool:
        """Whether it makes something else of that matrix, which then need not stay."""


class PlainWeight(LinearWeight):
    """A matrix as it is stored."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor  # [out_features, in_features]
        self.shape: tuple[int, int] = (tensor.shape[0], tensor.shape[1])

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.tensor, bias)


class FixedTileWeight(PlainWeight):
    """A row's output is the same bit by bit however many others there are.

    The libraries choose another kernel for another number of rows.
    """

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        from vlmflow_engine.kernels.fixed_tile_linear import fixed_tile_linear

        return fixed_tile_linear(x, self.tensor, bias)


class PlainFormat:
    """Every matrix as it is stored."""

    is_quantised = False

    def __call__(self, weight: Tensor, name: str, allocate: Allocate) -> LinearWeight:
        return PlainWeight(weight)

    def is_packed(self, name: str) -> bool:
        return False
