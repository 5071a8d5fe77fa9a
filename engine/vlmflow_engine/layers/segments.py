"""Full attention inside each of a packed sequence's segments: its images, or windows of them."""

from collections.abc import Iterable
from itertools import accumulate, chain, groupby, repeat

import numpy as np
import torch
from torch import Tensor

from vlmflow_engine.kernels.cpu.segment_attention import (
    can_attend_segments,
    segment_attention,
    segment_metadata,
)
from vlmflow_engine.kernels.dispatch import runs_triton
from vlmflow_engine.kernels.paged_metadata import PagedMetadata
from vlmflow_engine.kernels.vit_attention import torch_attention, vit_attention
from vlmflow_engine.layers.host_array import to_device


class Segments:
    """Where one segment ends and the next begins.

    Neighbours of equal length are attended in one call. So there is no mask, and no work for pairs
    of tokens that do not see each other.
    """

    def __init__(self, lengths: Iterable[int], *, is_one_size: bool = False) -> None:
        """Take the lengths of a pass.

        lengths      tokens of each segment, in their order
        is_one_size  whether the tower's images are all of one size, in every pass
        """
        self.runs: list[tuple[int, int]] = [  # (segments, tokens of each)
            (len(list(group)), length) for length, group in groupby(lengths)
        ]
        self._is_one_size = is_one_size
        # All layers of a pass share these: on the device, and for the C++ kernels.
        self._starts: Tensor | None = None
        self._metadata: PagedMetadata | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v: [tokens, num_heads, head_dim], as is what is returned."""
        if not runs_triton(q):
            # In float32 torch's own is as fast.
            if len(q) and q.dtype == torch.bfloat16 and can_attend_segments(q):
                return segment_attention(q, k, v, self._cpu_metadata())
            return torch_attention(q, k, v, self.runs)
        starts = self._starts_on(q.device)
        return vit_attention(q, k, v, self.runs, starts, is_one_size=self._is_one_size)

    def _cpu_metadata(self) -> PagedMetadata:
        if self._metadata is None:
            self._metadata = segment_metadata(self._lengths())
        return self._metadata

    def _lengths(self) -> list[int]:
        return list(chain.from_iterable(repeat(length, count) for count, length in self.runs))

    def _starts_on(self, device: torch.device) -> Tensor:
        """[segments + 1] int32: each segment's first token, and the end of the last."""
        if self._starts is None or self._starts.device != device:
            starts = list(accumulate(self._lengths(), initial=0))
            self._starts = to_device(np.array(starts, np.int32), device)
        return self._starts
