"""Full attention inside each of a packed sequence's segments: its images, or windows of them."""

from collections.abc import Iterable
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor


class Segments:
    """Where one segment ends and the next begins.

    Neighbours of equal length are attended in one call. So there is no mask, and no work for pairs
    of tokens that do not see each other.
    """

    def __init__(self, lengths: Iterable[int]) -> None:
        """lengths  tokens of each segment, in their order"""
        self.runs: list[tuple[int, int]] = [  # (segments, tokens of each)
            (len(list(group)), length) for length, group in groupby(lengths)
        ]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v: [tokens, num_heads, head_dim], as is what is returned."""
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        start = 0
        for count, length in self.runs:
            end = start + count * length
            # [segments, num_heads, tokens, head_dim]
            own_q, own_k, own_v = (
                x[start:end].view(count, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v)
            )
            attended = F.scaled_dot_product_attention(own_q, own_k, own_v)
            out[start:end] = attended.transpose(1, 2).flatten(0, 1)
            start = end
        return out
