"""Attention over a paged KV cache, in plain torch: the reference, and what runs where nothing
faster does.

Token `t` of a sequence lies in slot `block_table[t // block_size] * block_size + t % block_size` of
a `LayerKVCache`. All new keys and values of a step are stored before any is read, so a sequence may
read blocks that another one fills in the same step.

Decoded tokens (one query each) are attended in groups of similar context length: one gather and one
call a group, the query heads of a KV head packed as query rows. Longer chunks are attended one by
one: a chunk without earlier context is read from the layer's own output, unless the cache stores
something else than that.
"""

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache

# A group's shorter members are padded to its longest; beyond this share a new group is cheaper.
_MAX_PADDING = 0.25


@dataclass(frozen=True, slots=True)
class SequenceSpan:
    """One sequence's part of a step."""

    num_new_tokens: int
    context_len: int  # tokens stored once the step's own are
    block_ids: AbstractSequence[int]  # at least those that hold the context


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Sequences with one new token each and contexts of similar length."""

    rows: Tensor  # [batch] int64, rows of the step
    block_ids: Tensor  # [batch * blocks_per_sequence] int64
    mask: Tensor  # [batch, 1, 1, blocks_per_sequence * block_size] bool, True where context is


@dataclass(frozen=True, slots=True)
class Chunk:
    """Several new tokens of one sequence, rows [start, end) of the step."""

    start: int
    end: int
    context_len: int
    block_ids: Tensor | None  # [blocks of the context] int64; None: the context is the chunk itself
    mask: Tensor | None  # [num_new_tokens, context_len] bool; None: causal from the first token


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Where a step's new tokens go and what each of them sees. Shared by all layers."""

    slot_mapping: Tensor  # [num_tokens] int64
    groups: list[DecodeGroup]
    chunks: list[Chunk]
    # The same for layers that see less far, by their window; made when the first one asks.
    _windowed: dict[int, "AttentionMetadata"] = field(default_factory=dict, compare=False)

    def within(self, window: int | None) -> "AttentionMetadata":
        """The metadata of layers that see `window` tokens back, the token itself included."""
        if window is None:
            return self
        if window not in self._windowed:
            self._windowed[window] = AttentionMetadata(
                self.slot_mapping,
                [_windowed_group(group, window) for group in self.groups],
                [_windowed_chunk(chunk, window, self.slot_mapping.device) for chunk in self.chunks],
            )
        return self._windowed[window]


def plan_attention(
    spans: AbstractSequence[SequenceSpan], *, block_size: int, device: torch.device
) -> AttentionMetadata:
    """Lay out a step whose rows are the spans' new tokens, one span after the other."""
    slots: list[int] = []
    chunks: list[Chunk] = []
    decodes: list[tuple[int, int, SequenceSpan]] = []  # (blocks, row, span)
    row = 0
    for span in spans:
        start = span.context_len - span.num_new_tokens
        for position in range(start, span.context_len):
            block_id = span.block_ids[position // block_size]
            slots.append(block_id * block_size + position % block_size)
        num_blocks = -(-span.context_len // block_size)
        if span.num_new_tokens == 1:
            decodes.append((num_blocks, row, span))
        else:
            chunks.append(_chunk(span, row, start, num_blocks, device))
        row += span.num_new_tokens
    return AttentionMetadata(
        slot_mapping=torch.tensor(slots, dtype=torch.int64, device=device),
        groups=_groups(decodes, block_size, device),
        chunks=chunks,
    )


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: LayerKVCache,
    metadata: AttentionMetadata,
    scale: float,
) -> Tensor:
    """Store the new keys and values, then attend causally. Returns [num_tokens, heads, head_dim].

    q     [num_tokens, num_heads, head_dim]
    k, v  [num_tokens, num_kv_heads, head_dim]
    """
    cache.store(k, v, metadata.slot_mapping)
    out = torch.empty_like(q)
    for group in metadata.groups:
        out[group.rows] = _attend_group(q[group.rows], k.shape[1], cache, group, scale)
    for chunk in metadata.chunks:
        rows = slice(chunk.start, chunk.end)
        keys, values = _read_context(k[rows], v[rows], cache, chunk, metadata.slot_mapping[rows])
        out[rows] = _attend_chunk(q[rows], keys, values, chunk, scale)
    return out


def _attend_group(
    q: Tensor, num_kv_heads: int, cache: LayerKVCache, group: DecodeGroup, scale: float
) -> Tensor:
    batch, num_heads, head_dim = q.shape
    # q: [batch, num_kv_heads, heads of a KV head, head_dim]
    queries = q.view(batch, num_kv_heads, num_heads // num_kv_heads, head_dim)
    # k, v: [batch, num_kv_heads, padded context, head_dim]
    keys, values = (
        stored.read_blocks(group.block_ids, q.dtype)
        .view(batch, -1, num_kv_heads, head_dim)
        .transpose(1, 2)
        for stored in (cache.key, cache.value)
    )
    attended = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=group.mask, scale=scale
    )
    return attended.reshape(batch, num_heads, head_dim)


def _read_context(
    k: Tensor, v: Tensor, cache: LayerKVCache, chunk: Chunk, slots: Tensor
) -> tuple[Tensor, Tensor]:
    """Keys and values that a chunk sees, [context_len, num_kv_heads, head_dim] each.

    k, v, slots  of the chunk's own tokens
    """
    stored = (cache.key, cache.value)
    if chunk.block_ids is not None:
        keys, values = (rows.read_blocks(chunk.block_ids, k.dtype) for rows in stored)
        return keys[: chunk.context_len], values[: chunk.context_len]
    if cache.is_exact:
        return k, v
    # Else the answer would depend on where its prompt was cut and on what was cached.
    keys, values = (rows.read_slots(slots, k.dtype) for rows in stored)
    return keys, values


def _attend_chunk(q: Tensor, keys: Tensor, values: Tensor, chunk: Chunk, scale: float) -> Tensor:
    # All as [1, heads, tokens, head_dim].
    queries, keys, values = (x.transpose(0, 1).unsqueeze(0) for x in (q, keys, values))
    attended = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
        scale=scale,
        enable_gqa=queries.shape[1] != keys.shape[1],
    )
    return attended.squeeze(0).transpose(0, 1)


def _chunk(
    span: SequenceSpan, row: int, start: int, num_blocks: int, device: torch.device
) -> Chunk:
    if start == 0:
        return Chunk(row, row + span.num_new_tokens, span.context_len, None, None)
    # Row i of the chunk is token start + i and sees all up to itself.
    positions = torch.arange(span.context_len, device=device)
    return Chunk(
        row,
        row + span.num_new_tokens,
        span.context_len,
        torch.tensor(list(span.block_ids[:num_blocks]), dtype=torch.int64, device=device),
        positions[None, :] <= positions[start:, None],
    )


def _windowed_chunk(chunk: Chunk, window: int, device: torch.device) -> Chunk:
    if chunk.context_len <= window:
        return chunk
    num_new_tokens = chunk.end - chunk.start
    keys = torch.arange(chunk.context_len, device=device)
    queries = keys[chunk.context_len - num_new_tokens :, None]
    return replace(chunk, mask=(keys <= queries) & (keys > queries - window))


def _windowed_group(group: DecodeGroup, window: int) -> DecodeGroup:
    keys = torch.arange(group.mask.shape[-1], device=group.mask.device)
    lengths = group.mask.sum(-1, keepdim=True)
    return replace(group, mask=group.mask & (keys >= lengths - window))


def _groups(
    decodes: list[tuple[int, int, SequenceSpan]], block_size: int, device: torch.device
) -> list[DecodeGroup]:
    """Cut the decoded sequences, longest first, where padding would exceed its share."""
    decodes.sort(key=lambda item: -item[0])
    groups: list[DecodeGroup] = []
    begin = 0
    for index in range(1, len(decodes) + 1):
        longest = decodes[begin][0]
        is_cut = index < len(decodes) and decodes[index][0] < (1 - _MAX_PADDING) * longest
        if index == len(decodes) or is_cut:
            groups.append(_group(decodes[begin:index], longest, block_size, device))
            begin = index
    return groups


def _group(
    members: list[tuple[int, int, SequenceSpan]],
    longest: int,
    block_size: int,
    device: torch.device,
) -> DecodeGroup:
    block_ids: list[int] = []
    for num_blocks, _, span in members:
        block_ids += span.block_ids[:num_blocks]
        block_ids += [span.block_ids[0]] * (longest - num_blocks)  # masked: any block will do
    lengths = torch.tensor([span.context_len for _, _, span in members], device=device)
    mask = torch.arange(longest * block_size, device=device)[None, :] < lengths[:, None]
    return DecodeGroup(
        rows=torch.tensor([row for _, row, _ in members], dtype=torch.int64, device=device),
        block_ids=torch.tensor(block_ids, dtype=torch.int64, device=device),
        mask=mask[:, None, None, :],
    )
