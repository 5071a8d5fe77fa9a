"""Sequences whose keys and values lie in shuffled pages, as decode and prefill attention read them.

Whatever no sequence has stored is NaN: pages of nobody, and the rest of a sequence's last page.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.problem import generator_of, random
from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache, PagedRows
from vlmflow_engine.kernels.paged_metadata import PagedMetadata
from vlmflow_engine.runner.kv_cache import allocate_layer

# By name: the engine's quant_policy.
KV_FORMATS = {"bf16": 0, "int8": 8, "int4": 4, "fp8": 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedInputs:
    """A step and what its sequences have stored."""

    q: Tensor  # [num_tokens, num_heads, head_dim]
    cache: LayerKVCache
    metadata: PagedMetadata
    block_ids: list[Tensor]  # int64, of each sequence
    context_lens: list[int]
    num_new_tokens: list[int]  # of each sequence; 0: a padded row, which has one all the same
    scale: float

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that are read, scales included."""
        slots = self.cache.key.rows.shape[0] * self.cache.key.rows.shape[1]
        return self.cache.num_bytes // slots * sum(self.context_lens)

    def gathered(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """All keys and values in padded rows [sequences, num_kv_heads, longest, head_dim]."""
        longest = max(self.context_lens)
        both = []
        for rows in (self.cache.key, self.cache.value):
            padded = [
                F.pad(rows.read_blocks(ids, dtype)[:length], (0, 0, 0, 0, 0, longest - length))
                for ids, length in zip(self.block_ids, self.context_lens, strict=True)
            ]
            both.append(torch.stack(padded).transpose(1, 2).contiguous())
        return both[0], both[1]


def paged_inputs(
    device: torch.device,
    seed: int,
    *,
    context_lens: Sequence[int],
    num_new_tokens: Sequence[int],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    kv_format: str = "bf16",
) -> PagedInputs:
    """Draw a step: first sequences of one new token each, then those of several.

    context_lens  tokens stored once the step's own are; 0: a padded row
    """
    generator = generator_of(device, seed)
    num_blocks = [-(-length // block_size) for length in context_lens]
    total = sum(num_blocks) + 3  # three of nobody
    order = torch.randperm(total, device=device, generator=generator)
    block_ids = list(torch.split(order[: sum(num_blocks)], num_blocks))
    cache = allocate_layer(
        (total, block_size, num_kv_heads, head_dim),
        quant_policy=KV_FORMATS[kv_format],
        dtype=dtype,
        device=device,
    )
    _poison(cache.key)
    _poison(cache.value)
    slots, offsets = [], torch.arange(block_size, device=device)
    for ids, length in zip(block_ids, context_lens, strict=True):
        own = (ids[:, None] * block_size + offsets).flatten()[:length]
        slots.append(own)
        shape = (length, num_kv_heads, head_dim)
        cache.store(
            random(shape, dtype, device, generator), random(shape, dtype, device, generator), own
        )
    rows = [max(count, 1) for count in num_new_tokens]
    ends = [0]
    for count in rows:
        ends.append(ends[-1] + count)
    tables = torch.zeros((len(context_lens), max(num_blocks) + 1), dtype=torch.int32, device=device)
    for table, ids in zip(tables, block_ids, strict=True):
        table[: len(ids)] = ids
    minus_one = torch.full((1,), -1, dtype=torch.int64, device=device)
    new_slots = [
        own[len(own) - count :] if count else minus_one
        for own, count in zip(slots, num_new_tokens, strict=True)
    ]
    metadata = PagedMetadata(
        slot_mapping=torch.cat(new_slots),
        block_tables=tables,
        table_rows=torch.arange(len(context_lens), dtype=torch.int32, device=device),
        context_lens=torch.tensor(list(context_lens), dtype=torch.int32, device=device),
        query_starts=torch.tensor(ends, dtype=torch.int32, device=device),
        num_decodes=sum(count == 1 for count in rows),
        max_chunk_len=max((count for count in rows if count > 1), default=0),
    )
    return PagedInputs(
        q=random((ends[-1], num_heads, head_dim), dtype, device, generator),
        cache=cache,
        metadata=metadata,
        block_ids=block_ids,
        context_lens=list(context_lens),
        num_new_tokens=list(num_new_tokens),
        scale=head_dim**-0.5,
    )


def attention_float64(inputs: PagedInputs) -> Tensor:
    """What causal attention over all that is stored gives; zeros for padded rows."""
    out = torch.zeros(inputs.q.shape, dtype=torch.float64, device=inputs.q.device)
    row = 0
    for ids, length, count in zip(
        inputs.block_ids, inputs.context_lens, inputs.num_new_tokens, strict=True
    ):
        if count == 0:
            row += 1
            continue
        # [num_kv_heads, tokens, head_dim]
        keys, values = (
            stored.read_blocks(ids, torch.float32)[:length].double().transpose(0, 1)
            for stored in (inputs.cache.key, inputs.cache.value)
        )
        q = inputs.q[row : row + count].double().transpose(0, 1)
        group = len(q) // len(keys)
        keys, values = (x.repeat_interleave(group, dim=0) for x in (keys, values))
        scores = inputs.scale * q @ keys.transpose(1, 2)
        places = torch.arange(length, device=q.device)
        hidden = places[None, :] > places[length - count :, None]
        weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
        out[row : row + count] = (weights @ values).transpose(0, 1)
        row += count
    return out


def _poison(stored: PagedRows) -> None:
    """Fill with what no answer may be made of."""
    if stored.scales is not None:
        stored.scales.fill_(float("nan"))
    elif stored.rows.is_floating_point():
        stored.rows.fill_(float("nan"))
