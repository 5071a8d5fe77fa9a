"""Numbers of rows that oneDNN multiplies: a few of them.

For each number that it has not seen oneDNN makes a primitive, of machine code and its memory: 1 ms
and half a megabyte for a layer of any size, and keeps a thousand of them. Steps of an engine have
every number of rows there is.
"""

import torch
from torch import Tensor


def next_size(num_rows: int) -> int:
    """The smallest of 1, 2, 4, 8, 16, 24, 32 and four for each doubling after, that is enough."""
    if num_rows <= 8:
        return 1 << max(num_rows - 1, 0).bit_length()
    step = max(8, 1 << (num_rows - 1).bit_length() - 3)
    return -(-num_rows // step) * step


def pad_rows(x: Tensor) -> Tensor:
    """[rows, size] -> [next_size(rows), size]; rows that are added hold zeros."""
    num_rows = len(x)
    size = next_size(num_rows)
    if size == num_rows:
        return x
    padded = torch.empty(size, x.shape[1], dtype=x.dtype)
    padded[:num_rows] = x
    padded[num_rows:] = 0
    return padded
