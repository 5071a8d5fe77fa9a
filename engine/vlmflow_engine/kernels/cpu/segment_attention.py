"""Attention of vision towers by the C++ kernels: each segment's tokens see all of their segment.

The kernel of prompts does it, for which a segment is a sequence whose tokens see up to its end; its
keys and values go to a cache that lives as long as the call.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vlmflow_engine.kernels.cpu.attention import can_attend, paged_attend
from vlmflow_engine.kernels.cpu.library import cpu_library
from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache, PagedRows
from vlmflow_engine.kernels.paged_metadata import PagedMetadata

_BLOCK_SIZE = 64  # tokens that the kernel reads at a time


def can_attend_segments(q: Tensor) -> bool:
    """Whether there are kernels for queries [tokens, num_heads, head_dim]."""
    return (
        q.device.type == "cpu"
        and can_attend(q.dtype, q.shape[-1], quant_policy=0)
        and cpu_library() is not None
    )


def segment_metadata(lengths: Sequence[int]) -> PagedMetadata:
    """Lay out a pass of segments, for all of its layers. At least one has a token."""
    sizes = np.array([length for length in lengths if length], np.int64)
    starts = np.concatenate(([0], sizes.cumsum()))
    num_blocks = -(-sizes // _BLOCK_SIZE)
    first_blocks = num_blocks.cumsum() - num_blocks
    columns = np.arange(num_blocks.max())
    # A segment's blocks follow one another; what lies beyond is never read.
    tables = np.minimum(first_blocks[:, None] + columns, num_blocks.sum() - 1)
    # From a token's row to its slot: blocks begin anew with each segment.
    shifts = first_blocks * _BLOCK_SIZE - starts[:-1]
    return PagedMetadata(
        slot_mapping=torch.from_numpy(np.arange(starts[-1]) + shifts.repeat(sizes)),
        block_tables=torch.from_numpy(tables.astype(np.int32)),
        table_rows=torch.arange(len(sizes), dtype=torch.int32),
        context_lens=torch.from_numpy(sizes.astype(np.int32)),
        query_starts=torch.from_numpy(starts.astype(np.int32)),
        num_decodes=0,
        max_chunk_len=int(sizes.max()),
        visible_ends=torch.from_numpy(sizes.repeat(sizes).astype(np.int32)),
    )


def segment_attention(q: Tensor, k: Tensor, v: Tensor, metadata: PagedMetadata) -> Tensor:
    """Return [tokens, num_heads, head_dim], contiguous.

    q, k, v   [tokens, num_heads, head_dim], the last dimension contiguous
    metadata  of the pass, by `segment_metadata`
    """
    num_blocks = int(metadata.block_tables[-1].amax()) + 1
    shape = (num_blocks, _BLOCK_SIZE, *k.shape[1:])
    cache = LayerKVCache(
        key=PagedRows(torch.empty(shape, dtype=k.dtype)),
        value=PagedRows(torch.empty(shape, dtype=v.dtype)),
    )
    return paged_attend(q, k, v, None, cache, metadata, scale=q.shape[-1] ** -0.5)
