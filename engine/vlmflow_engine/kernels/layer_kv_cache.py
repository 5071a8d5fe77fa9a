"""One layer's part of the paged KV cache: how tokens are written into it and read back."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmflow_engine.kernels.kv_quant import dequantise, quantise


@dataclass(frozen=True, slots=True)
class PagedRows:
    """The keys of a layer, or its values: a row for each slot and KV head.

    Slot `block * block_size + offset` is a token's place. Whoever reads gets a row as it was
    stored, whether in an earlier step or in this one: an answer must not depend on what was stored
    when.
    """

    rows: Tensor  # [num_blocks, block_size, num_kv_heads, head_dim], or codes: kernels/kv_quant.py
    bits: int = 0  # of a stored element: 8, 4, or 0 for those of the dtype
    scales: Tensor | None = None  # [num_blocks, block_size, num_kv_heads, 2]; None: bits is 0

    @property
    def num_bytes(self) -> int:
        return self.rows.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def store(self, x: Tensor, slot_mapping: Tensor) -> None:
        """Write each new token's rows into its slot.

        x             [num_tokens, num_kv_heads, head_dim]
        slot_mapping  [num_tokens] int64, all different
        """
        if self.scales is not None:
            x, scales = quantise(x, self.bits)
            self.scales.view(-1, *scales.shape[1:]).index_copy_(0, slot_mapping, scales)
        self.rows.view(-1, *x.shape[1:]).index_copy_(0, slot_mapping, x)

    def read_blocks(self, block_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Read whole blocks: [len(block_ids) * block_size, num_kv_heads, head_dim].

        dtype  that of what was stored
        """
        rows = self.rows.index_select(0, block_ids)
        if self.scales is not None:
            rows = dequantise(rows, self.scales.index_select(0, block_ids), self.bits, dtype)
        return rows.flatten(0, 1)

    def read_slots(self, slots: Tensor, dtype: torch.dtype) -> Tensor:
        """Read single tokens: [len(slots), num_kv_heads, head_dim]."""
        rows = self.rows.flatten(0, 1).index_select(0, slots)
        if self.scales is None:
            return rows
        scales = self.scales.flatten(0, 1).index_select(0, slots)
        return dequantise(rows, scales, self.bits, dtype)


@dataclass(frozen=True, slots=True)
class LayerKVCache:
    """A layer's keys and values, stored alike."""

    key: PagedRows
    value: PagedRows

    @property
    def is_exact(self) -> bool:
        """Whether what is read is what was stored."""
        return self.key.bits == 0

    @property
    def num_bytes(self) -> int:
        return self.key.num_bytes + self.value.num_bytes

    def store(self, k: Tensor, v: Tensor, slot_mapping: Tensor) -> None:
        """Write each new token's key and value, [num_tokens, num_kv_heads, head_dim] each."""
        self.key.store(k, slot_mapping)
        self.value.store(v, slot_mapping)
