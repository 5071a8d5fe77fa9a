"""One layer's part of the paged KV cache: how tokens are written into it and read back."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmflow_engine.kernels.kv_float8 import (
    FLOAT8_DTYPE,
    dequantise_float8,
    quantise_float8,
)
from vlmflow_engine.kernels.kv_quant import dequantise, quantise


@dataclass(frozen=True, slots=True)
class PagedRows:
    """The keys of a layer, or its values: a row for each slot and KV head.

    Slot `block * block_size + offset` is a token's place. Whoever reads gets a row as it was
    stored, whether in an earlier step or in this one: an answer must not depend on what was stored
    when.
    """

    # [num_blocks, block_size, num_kv_heads, head_dim] as they are, or codes: uint8 as kv_quant.py
    # makes them, float8_e4m3fn as kv_float8.py does.
    rows: Tensor
    bits: int = 0  # of a stored element: 8, 4, or 0 for those of the dtype
    # [num_blocks, block_size, num_kv_heads, 2], of float8 [..., 1]; None: bits is 0
    scales: Tensor | None = None

    @property
    def is_float8(self) -> bool:
        """Whether the 8 bits are a floating-point number's."""
        return self.rows.dtype == FLOAT8_DTYPE

    @property
    def num_bytes(self) -> int:
        return self.rows.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def store(self, x: Tensor, slot_mapping: Tensor) -> None:
        """Write each new token's rows into its slot.

        x             [num_tokens, num_kv_heads, head_dim]
        slot_mapping  [num_tokens] int64, all different
        """
        if self.scales is not None:
            x, scales = self._quantise(x)
            self.scales.view(-1, *scales.shape[1:]).index_copy_(0, slot_mapping, scales)
        rows = self.rows
        if self.is_float8:  # torch copies no float8 by index on a CPU
            rows, x = rows.view(torch.uint8), x.view(torch.uint8)
        rows.view(-1, *x.shape[1:]).index_copy_(0, slot_mapping, x)

    def read_blocks(self, block_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Read whole blocks: [len(block_ids) * block_size, num_kv_heads, head_dim].

        dtype  that of what was stored
        """
        rows = self.rows.index_select(0, block_ids)
        if self.scales is not None:
            rows = self._dequantise(rows, self.scales.index_select(0, block_ids), dtype)
        return rows.flatten(0, 1)

    def read_slots(self, slots: Tensor, dtype: torch.dtype) -> Tensor:
        """Read single tokens: [len(slots), num_kv_heads, head_dim]."""
        rows = self.rows.flatten(0, 1).index_select(0, slots)
        if self.scales is None:
            return rows
        scales = self.scales.flatten(0, 1).index_select(0, slots)
        return self._dequantise(rows, scales, dtype)

    def _quantise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return quantise_float8(x) if self.is_float8 else quantise(x, self.bits)

    def _dequantise(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        if self.is_float8:
            return dequantise_float8(codes, scales, dtype)
        return dequantise(codes, scales, self.bits, dtype)


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
