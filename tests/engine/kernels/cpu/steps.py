"""Steps of attention and what they should give: float64, in plain torch, one sequence at a time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tests.engine.kernels.kv_formats import paged_rows, poison_slots, read_back
from vlmflow_engine.kernels.cpu.attention import paged_attend
from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache, PagedRows
from vlmflow_engine.kernels.paged_metadata import PagedMetadata
from vlmflow_engine.layers.rotary import RotaryEmbedding

# Of the largest number of the result.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1.2e-2}


@dataclass(frozen=True)
class Span:
    """A sequence of a step: tokens stored before, and new ones; none of either is a padded row."""

    past: int
    new: int = 1

    @property
    def rows(self) -> int:
        return max(self.new, 1)

    @property
    def length(self) -> int:
        return self.past + self.new


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is handed to the kernel. All that no sequence may see is NaN."""

    q: Tensor
    k: Tensor
    v: Tensor
    cos_sin: tuple[Tensor, Tensor] | None
    cache: LayerKVCache
    metadata: PagedMetadata
    spans: list[Span]
    slots: list[Tensor]  # of each sequence's tokens
    window: int | None = None

    @property
    def scale(self) -> float:
        return 1.5 * self.q.shape[-1] ** -0.5

    def run(self) -> Tensor:
        return paged_attend(
            self.q,
            self.k,
            self.v,
            self.cos_sin,
            self.cache,
            replace(self.metadata, shared={}),
            scale=self.scale,
            window=self.window,
        )

    def only(self, number: int) -> "Step":
        """One sequence of it alone, over a copy of the cache."""
        first, end = self.metadata.query_starts[number : number + 2].tolist()
        own, one = slice(first, end), slice(number, number + 1)
        is_decode = number < self.metadata.num_decodes
        ends = self.metadata.visible_ends
        metadata = replace(
            self.metadata,
            slot_mapping=self.metadata.slot_mapping[own],
            table_rows=self.metadata.table_rows[one],
            context_lens=self.metadata.context_lens[one],
            query_starts=torch.tensor([0, end - first], dtype=torch.int32),
            num_decodes=int(is_decode),
            max_chunk_len=0 if is_decode else end - first,
            visible_ends=None if ends is None else ends[own],
        )
        angles = None if self.cos_sin is None else tuple(x[own] for x in self.cos_sin)
        return replace(
            self,
            q=self.q[own],
            k=self.k[own],
            v=self.v[own],
            cos_sin=angles,
            cache=copy(self.cache),
            metadata=metadata,
            spans=self.spans[one],
            slots=self.slots[one],
        )


def copy(cache: LayerKVCache) -> LayerKVCache:
    return LayerKVCache(
        *(
            replace(x, rows=x.rows.clone(), scales=None if x.scales is None else x.scales.clone())
            for x in (cache.key, cache.value)
        )
    )


def make_step(
    spans: Sequence[Span],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    format: str = "rows",
    window: int | None = None,
    turns: bool = True,
    seed: int = 0,
) -> Step:
    """Draw a step: sequences of one new token each first, as a `PagedMetadata` has them."""
    spans = list(spans)
    assert spans == sorted(spans, key=lambda span: span.new > 1)
    generator = torch.Generator().manual_seed(seed + head_dim + len(spans))
    sizes = [-(-span.length // block_size) for span in spans]
    num_blocks = sum(sizes) + 3  # three of nobody
    shuffled = torch.randperm(num_blocks, generator=generator).split([*sizes, 3])[:-1]
    table_rows = torch.randperm(len(spans) + 2, generator=generator)[: len(spans)]
    # A row of the table ends with blocks that are not the sequence's.
    tables = torch.full((len(spans) + 2, max(sizes) + 1), num_blocks - 1, dtype=torch.int32)
    slots = []
    for row, blocks, span in zip(table_rows, shuffled, spans, strict=True):
        tables[row, : len(blocks)] = blocks.int()
        own = (blocks[:, None] * block_size + torch.arange(block_size)).flatten()
        slots.append(own[: span.length])
    is_poison = torch.ones(num_blocks * block_size, dtype=torch.bool)
    for span, own in zip(spans, slots, strict=True):
        hidden = 0 if window is None else max(0, span.past + 1 - window)
        is_poison[own[hidden : span.past]] = False
    stored = []
    for _ in range(2):
        x = torch.randn(num_blocks, block_size, kv_heads, head_dim, generator=generator) + 0.25
        rows = paged_rows(x.to(dtype), format)
        poison_slots(rows, is_poison.nonzero().flatten())
        stored.append(rows)
    num_rows = sum(span.rows for span in spans)
    # Queries, keys and values lie in the rows of one merged projection.
    merged = torch.randn(num_rows, heads + 2 * kv_heads, head_dim, generator=generator).to(dtype)
    q, k, v = merged.split([heads, kv_heads, kv_heads], dim=1)
    positions = torch.cat([torch.arange(s.rows) + s.past for s in spans])
    frequencies = 10000.0 ** -torch.linspace(0, 1, head_dim // 2)
    rotary = RotaryEmbedding(frequencies, dtype=dtype, device="cpu")
    minus_one = torch.tensor([-1])
    num_decodes = sum(span.rows == 1 for span in spans)
    return Step(
        q=q,
        k=k,
        v=v,
        cos_sin=rotary.at(positions) if turns else None,
        cache=LayerKVCache(*stored),
        metadata=PagedMetadata(
            slot_mapping=torch.cat(
                [own[s.past :] if s.new else minus_one for s, own in zip(spans, slots, strict=True)]
            ),
            block_tables=tables,
            table_rows=table_rows.int(),
            context_lens=torch.tensor([span.length for span in spans], dtype=torch.int32),
            query_starts=torch.tensor(
                [0, *(span.rows for span in spans)], dtype=torch.int32
            ).cumsum(0, dtype=torch.int32),
            num_decodes=num_decodes,
            max_chunk_len=max((s.rows for s in spans if s.rows > 1), default=0),
        ),
        spans=spans,
        slots=slots,
        window=window,
    )


def turned(x: Tensor, cos_sin: tuple[Tensor, Tensor] | None) -> Tensor:
    """Rotated in float32 and rounded once."""
    if cos_sin is None:
        return x
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = (angles.float() for angles in cos_sin)
    return (x.float() * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def expected(step: Step) -> Tensor:
    """Softmax over what is stored, in float64; the step's own tokens are stored in a copy."""
    cache = copy(step.cache)
    is_stored = step.metadata.slot_mapping >= 0
    slots = step.metadata.slot_mapping[is_stored]
    cache.store(turned(step.k, step.cos_sin)[is_stored], step.v[is_stored], slots)
    out = torch.zeros(step.q.shape, dtype=torch.float64)
    queries = turned(step.q, step.cos_sin).double()
    row = 0
    for span, own in zip(step.spans, step.slots, strict=True):
        rows = slice(row, row + span.rows)
        row += span.rows
        if not span.length:
            continue
        keys, values = (  # [num_heads, tokens, head_dim]
            _read(stored, own).repeat_interleave(step.q.shape[1] // step.k.shape[1], dim=1)
            for stored in (cache.key, cache.value)
        )
        positions = torch.arange(span.past, span.length)[:, None]
        tokens = torch.arange(span.length)
        ends = positions + 1
        if step.metadata.visible_ends is not None and span.rows > 1:
            ends = step.metadata.visible_ends[rows, None].long()
        is_seen = tokens < ends
        if step.window is not None:
            is_seen &= tokens > positions - step.window
        scores = step.scale * torch.einsum("qhd,thd->hqt", queries[rows], keys)
        p = scores.masked_fill(~is_seen, -math.inf).softmax(dim=-1)
        out[rows] = torch.einsum("hqt,thd->qhd", p, values)
    return out


def _read(stored: PagedRows, slots: Tensor) -> Tensor:
    """Rows of a sequence in float64; what is poisoned counts as nothing."""
    return read_back(stored).flatten(0, 1)[slots].double().nan_to_num()


def error(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, of the largest number that there should be. NaN if there is one."""
    return float((got.double() - wanted).abs().max() / wanted.abs().max())


def check(step: Step) -> None:
    """Raise AssertionError if the kernel gives something else."""
    wanted = expected(step)
    got = step.run()
    assert got.shape == step.q.shape and got.dtype == step.q.dtype and got.is_contiguous()
    assert error(got, wanted) < TOLERANCES[step.q.dtype]
