"""Attention over the paged KV cache: by the Triton kernels, the CPU's, or in plain torch."""

import torch
from torch import Tensor

from vlmflow_engine.kernels.cpu.attention import paged_attend
from vlmflow_engine.kernels.dispatch import runs_triton
from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache
from vlmflow_engine.kernels.paged_attention import AttentionMetadata, paged_attention
from vlmflow_engine.kernels.paged_metadata import PagedMetadata
from vlmflow_engine.layers.rotary import rotate

# What a step is laid out for decides what computes it.
StepAttention = AttentionMetadata | PagedMetadata


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: tuple[Tensor, Tensor] | None,
    cache: LayerKVCache,
    metadata: StepAttention,
    *,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Turn, store, attend. Returns [num_tokens, num_heads, head_dim].

    q        [num_tokens, num_heads, head_dim]
    k, v     [num_tokens, num_kv_heads, head_dim]
    cos_sin  of the step, see `RotaryEmbedding.at`; None: q and k are turned already
    window   tokens that each sees, itself included; None: all before it
    """
    if isinstance(metadata, PagedMetadata):
        attend_paged = _attend_triton if runs_triton(q) else paged_attend
        return attend_paged(q, k, v, cos_sin, cache, metadata, scale=scale, window=window)
    if cos_sin is not None:
        q, k = rotate(q, *cos_sin), rotate(k, *cos_sin)
    return paged_attention(q, k, v, cache, metadata.within(window), scale)


def _attend_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: tuple[Tensor, Tensor] | None,
    cache: LayerKVCache,
    metadata: PagedMetadata,
    *,
    scale: float,
    window: int | None,
) -> Tensor:
    # Late: only who computes on a GPU needs triton.
    from vlmflow_engine.kernels.paged_decode import paged_decode
    from vlmflow_engine.kernels.paged_prefill import paged_prefill
    from vlmflow_engine.kernels.store_kv import store_kv

    cos, sin = cos_sin if cos_sin is not None else (None, None)
    turned = store_kv(q, k, v, cos, sin, cache, metadata.slot_mapping)
    out = torch.empty_like(turned)
    count = metadata.num_decodes
    if count:
        paged_decode(turned[:count], cache, metadata, scale=scale, window=window, out=out[:count])
    if metadata.max_chunk_len:
        paged_prefill(turned[count:], cache, metadata, scale=scale, window=window, out=out[count:])
    return out
