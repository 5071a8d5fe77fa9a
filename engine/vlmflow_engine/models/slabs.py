"""Memory for weights on a CPU, handed out one behind another.

An allocator that serves weights and short-lived buffers by turns keeps what is freed between them:
1.2 times the weights in the end, in place of 1.09 (benchmarks/loading.py). And layers that are read
one after another, and lie so, are merged without a copy (layers/linear.py).
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

_SLAB_BYTES = 64 << 20  # above the 32 MiB from which malloc always takes pages of their own
_ALIGNMENT = 64  # bytes: a cache line, and the widest vector register


class Slabs:
    """Of one dtype on one device. What is not touched of a slab takes no memory."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device
        self._left: dict[bool, Tensor] = {}  # whether it is for vectors -> the rest of a slab

    def empty(self, shape: Sequence[int]) -> Tensor:
        """A tensor without a content. Vectors lie apart: biases are read between matrices."""
        count = prod(shape)
        slab_size, step = _SLAB_BYTES // self._dtype.itemsize, _ALIGNMENT // self._dtype.itemsize
        if self._device.type != "cpu" or count > slab_size:
            return torch.empty(tuple(shape), dtype=self._dtype, device=self._device)
        is_vector = len(shape) < 2
        left = self._left.get(is_vector)
        if left is None or len(left) < count:
            left = torch.empty(slab_size, dtype=self._dtype)
        self._left[is_vector] = left[-(-count // step) * step :]
        return left[:count].view(tuple(shape))
