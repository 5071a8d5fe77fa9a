"""Self-attention of a decoder layer over the paged KV cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache
from vlmflow_engine.layers.attend import StepAttention, attend
from vlmflow_engine.layers.linear import Linear
from vlmflow_engine.layers.lora import AdapterRows
from vlmflow_engine.layers.norm import RMSNorm


class Attention:
    """Grouped-query attention with rotary positions; q, k and v are one merged layer."""

    def __init__(
        self,
        qkv_proj: Linear,
        o_proj: Linear,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        window: int | None = None,
        q_norm: RMSNorm | None = None,
        k_norm: RMSNorm | None = None,
    ) -> None:
        """window  how many tokens back a token sees, itself included; None: all of them"""
        self.qkv_proj = qkv_proj
        self.o_proj = o_proj
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.window = window
        self.q_norm = q_norm
        self.k_norm = k_norm
        self.scale = head_dim**-0.5

    def __call__(
        self,
        x: Tensor,
        cos_sin: tuple[Tensor, Tensor],
        cache: LayerKVCache,
        metadata: StepAttention,
        adapters: Sequence[AdapterRows] | None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Attend the step's tokens x [num_tokens, hidden_size]; their KV goes into `cache`.

        rows  [num_rows] int64, the tokens whose output is wanted, without adapters; None: all
        """
        qkv = self.qkv_proj(x, adapters).view(len(x), -1, self.head_dim)
        sizes = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
        q, k, v = torch.split(qkv, sizes, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        out = attend(q, k, v, cos_sin, cache, metadata, scale=self.scale, window=self.window)
        out = out.reshape(len(x), -1)
        return self.o_proj(out if rows is None else out[rows], adapters)
