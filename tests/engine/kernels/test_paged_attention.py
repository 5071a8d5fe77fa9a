"""Attention over a paged cache, against a naive float64 softmax over gathered keys."""

import math
import random
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from vlmflow_engine.kernels.kv_float8 import dequantise_float8, quantise_float8
from vlmflow_engine.kernels.kv_quant import dequantise, quantise
from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache, PagedRows
from vlmflow_engine.kernels.paged_attention import (
    AttentionMetadata,
    SequenceSpan,
    paged_attention,
    plan_attention,
)

CPU = torch.device("cpu")
BLOCK_SIZE = 16
# Of the result's largest element; half precision rounds the inputs of both sides alike, so only
# probabilities and the result itself are rounded.
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 8e-4}
POISON = 3e4  # finite in float16, and far above any real key or value

# (new tokens, context length with them)
DECODES = [(1, 1), (1, 15), (1, 16), (1, 17), (1, 131)]
FIRST_CHUNKS = [(15, 15), (16, 16), (17, 17), (131, 131)]
LATER_CHUNKS = [(2, 17), (16, 32), (15, 131), (115, 131), (17, 18)]
MIXED = [(1, 131), (17, 17), (1, 1), (15, 131), (1, 16), (2, 2), (130, 131), (1, 17), (1, 15)]


@dataclass(frozen=True)
class Step:
    """A step's inputs; each sequence holds blocks of its own, in shuffled order."""

    spans: list[SequenceSpan]
    q: Tensor
    k: Tensor
    v: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_size: int
    bits: int = 0  # 16: float8, as quant_policy counts

    def run(self, *, sharpness: float = 1.0) -> Tensor:
        """Call the kernel; the caches of the step itself stay as they are."""
        cache = LayerKVCache(*(self.paged(x) for x in (self.key_cache, self.value_cache)))
        scale = sharpness * self.q.shape[-1] ** -0.5
        return paged_attention(self.q, self.k, self.v, cache, self.metadata(), scale)

    def paged(self, x: Tensor) -> PagedRows:
        """A cache's keys or values, in so many bits."""
        if self.bits == 0:
            return PagedRows(x.clone())
        if self.bits == 16:
            codes, scales = quantise_float8(x)
            return PagedRows(codes, 8, scales)
        codes, scales = quantise(x, self.bits)
        return PagedRows(codes, self.bits, scales)

    def as_stored(self) -> "Step":
        """The same step with all keys and values as a cache of so many bits holds them."""
        names = ("k", "v", "key_cache", "value_cache")
        rows = {name: getattr(self, name) for name in names}
        if self.bits == 16:
            stored = {
                name: dequantise_float8(*quantise_float8(x), x.dtype) for name, x in rows.items()
            }
        else:
            stored = {
                name: dequantise(*quantise(x, self.bits), self.bits, x.dtype)
                for name, x in rows.items()
            }
        return replace(self, **stored, bits=0)

    def metadata(self) -> AttentionMetadata:
        return plan_attention(self.spans, block_size=self.block_size, device=CPU)

    def rows(self, index: int) -> slice:
        start = sum(span.num_new_tokens for span in self.spans[:index])
        return slice(start, start + self.spans[index].num_new_tokens)

    def alone(self, index: int) -> "Step":
        """The same step with one of its sequences only."""
        rows = self.rows(index)
        return replace(
            self, spans=[self.spans[index]], q=self.q[rows], k=self.k[rows], v=self.v[rows]
        )


def make_step(
    lengths: list[tuple[int, int]],
    *,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 32,
    dtype: torch.dtype = torch.float32,
    block_size: int = BLOCK_SIZE,
    poison: float = POISON,
) -> Step:
    """Draw a step. Every slot that holds no earlier token is poisoned, unused blocks as well."""
    generator = torch.Generator().manual_seed(len(lengths) + num_heads + head_dim)

    def draw(num_tokens: int, heads: int) -> Tensor:
        return torch.randn(num_tokens, heads, head_dim, generator=generator).to(dtype)

    counts = [-(-context_len // block_size) for _, context_len in lengths]
    free = list(range(sum(counts) + 3))
    random.Random(0).shuffle(free)
    key_cache = torch.full((len(free), block_size, num_kv_heads, head_dim), poison, dtype=dtype)
    value_cache = -key_cache
    spans = []
    for (num_new_tokens, context_len), count in zip(lengths, counts, strict=True):
        span = SequenceSpan(num_new_tokens, context_len, [free.pop() for _ in range(count)])
        spans.append(span)
        for position in range(context_len - num_new_tokens):
            block, slot = span.block_ids[position // block_size], position % block_size
            key_cache[block, slot], value_cache[block, slot] = draw(2, num_kv_heads)
    num_tokens = sum(num_new_tokens for num_new_tokens, _ in lengths)
    q, k, v = (draw(num_tokens, heads) for heads in (num_heads, num_kv_heads, num_kv_heads))
    return Step(spans, q, k, v, key_cache, value_cache, block_size)


def naive_attention(step: Step) -> Tensor:
    """Store, gather by block table, mask, softmax: one query and one head at a time, in float64."""
    q, k, v = step.q.double(), step.k.double(), step.v.double()
    key_cache, value_cache = step.key_cache.double(), step.value_cache.double()
    places = [  # of each sequence's tokens: (block, offset)
        [
            (span.block_ids[position // step.block_size], position % step.block_size)
            for position in range(span.context_len)
        ]
        for span in step.spans
    ]
    row = 0
    for span, own in zip(step.spans, places, strict=True):
        for block, offset in own[span.context_len - span.num_new_tokens :]:
            key_cache[block, offset], value_cache[block, offset] = k[row], v[row]
            row += 1
    num_heads, group = q.shape[1], q.shape[1] // k.shape[1]
    out = torch.empty_like(q)
    row = 0
    for span, own in zip(step.spans, places, strict=True):
        blocks, offsets = (list(column) for column in zip(*own, strict=True))
        keys, values = key_cache[blocks, offsets], value_cache[blocks, offsets]
        for seen in range(span.context_len - span.num_new_tokens + 1, span.context_len + 1):
            for head in range(num_heads):
                scores = keys[:seen, head // group] @ q[row, head] * q.shape[-1] ** -0.5
                out[row, head] = scores.softmax(dim=0) @ values[:seen, head // group]
            row += 1
    return out


def assert_close(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCES[actual.dtype] * expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    "lengths",
    [DECODES, FIRST_CHUNKS, LATER_CHUNKS, MIXED],
    ids=["decodes", "first_chunks", "later_chunks", "mixed"],
)
def test_result_is_the_naive_softmax(lengths, dtype):
    step = make_step(lengths, dtype=dtype)
    assert_close(step.run(), naive_attention(step))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("head_dim", [32, 64, 80])
@pytest.mark.parametrize("queries_per_kv_head", [1, 2, 4, 8])
def test_every_query_head_reads_its_kv_head(queries_per_kv_head, head_dim, dtype):
    lengths = [(1, 17), (17, 17), (3, 18), (1, 1)]
    step = make_step(lengths, num_heads=2 * queries_per_kv_head, head_dim=head_dim, dtype=dtype)
    assert_close(step.run(), naive_attention(step))


@pytest.mark.parametrize("block_size", [1, 7, 16, 64])
def test_result_does_not_depend_on_the_block_size(block_size):
    step = make_step(MIXED, block_size=block_size)
    assert_close(step.run(), naive_attention(step))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_slots_behind_the_context_do_not_reach_the_result(dtype):
    poisoned, clean = (make_step(MIXED, dtype=dtype, poison=poison) for poison in (POISON, 0.0))
    assert torch.equal(poisoned.run(), clean.run())


def test_padded_context_does_not_reach_the_result():
    # One group: the shorter contexts are padded with blocks that hold others' tokens.
    step = make_step([(1, 7 * BLOCK_SIZE), (1, 6 * BLOCK_SIZE), (1, 5 * BLOCK_SIZE + 16)])
    longest = step.spans[0]
    (group,) = step.metadata().groups
    assert group.mask.shape == (3, 1, 1, longest.context_len)
    assert not group.mask.all()
    assert_close(step.run(), naive_attention(step))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_a_sequence_alone_gets_what_it_gets_in_a_batch(dtype):
    step = make_step(MIXED, dtype=dtype)
    together = step.run()
    for index in range(len(MIXED)):
        assert_close(step.alone(index).run(), together[step.rows(index)])


@pytest.mark.parametrize("num_new_tokens", [1, 2, 17], ids=["decode", "short", "long"])
@pytest.mark.parametrize("reader_is_first", [True, False])
def test_a_sequence_reads_a_block_that_another_fills_in_the_same_step(
    num_new_tokens, reader_is_first
):
    # Both begin with the same two blocks; the writer computes them in this very step.
    writer, reader = (
        (2 * BLOCK_SIZE + 3, 2 * BLOCK_SIZE + 3),
        (num_new_tokens, 2 * BLOCK_SIZE + num_new_tokens),
    )
    lengths = [reader, writer] if reader_is_first else [writer, reader]
    drawn = make_step(lengths)
    spans = list(drawn.spans)
    at = 0 if reader_is_first else 1
    shared = spans[1 - at].block_ids[:2]
    spans[at] = replace(spans[at], block_ids=[*shared, *spans[at].block_ids[2:]])
    step = replace(drawn, spans=spans)
    assert_close(step.run(), naive_attention(step))


def test_blocks_allocated_ahead_of_the_context_are_not_read():
    step = make_step(MIXED)
    ahead = replace(
        step,
        spans=[
            replace(span, block_ids=[*span.block_ids, step.spans[0].block_ids[0]])
            for span in step.spans
        ],
    )
    assert torch.equal(ahead.run(), step.run())


def test_queries_keys_and_values_may_be_views_of_one_merged_projection():
    step = make_step(MIXED)
    merged = torch.cat([step.q, step.k, step.v], dim=1)
    q, k, v = torch.split(merged, [step.q.shape[1], step.k.shape[1], step.v.shape[1]], dim=1)
    assert torch.equal(replace(step, q=q, k=k, v=v).run(), step.run())


def test_scale_multiplies_the_scores():
    step = make_step(MIXED)
    assert_close(step.run(sharpness=3), naive_attention(replace(step, q=3 * step.q)))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("bits", [8, 4, 16])
@pytest.mark.parametrize(
    "lengths",
    [DECODES, FIRST_CHUNKS, LATER_CHUNKS, MIXED],
    ids=["decodes", "first_chunks", "later_chunks", "mixed"],
)
def test_a_quantised_cache_is_attended_as_what_it_holds(lengths, bits, dtype):
    step = replace(make_step(lengths, dtype=dtype), bits=bits)
    assert_close(step.run(), naive_attention(step.as_stored()))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("poison", [POISON, 0.0])
def test_a_quantised_result_is_as_near_the_exact_one_as_its_scales_allow(bits, poison):
    # Queries so small that 4 bits, too, leave the bound below the values themselves.
    drawn = make_step(MIXED, poison=poison)
    step = replace(drawn, q=0.1 * drawn.q, bits=bits)
    rows = torch.cat([x.flatten(0, -2) for x in (step.k, step.v, step.key_cache, step.value_cache)])
    rows = rows[rows.abs().amax(dim=-1) < POISON]
    _, scales = quantise(rows, bits)
    error = scales[:, 0].max().item() / 2  # of a key's or a value's element
    # A score is off by `score` at most, so the probabilities by exp(2 * score) - 1 in all.
    score = error * step.q.abs().sum(dim=-1).max().item() * step.q.shape[-1] ** -0.5
    bound = error + (math.exp(2 * score) - 1) * rows.abs().max().item()
    assert bound < rows.abs().max()
    difference = (step.run().double() - naive_attention(step)).abs().max().item()
    assert error / 100 < difference < bound


@pytest.mark.parametrize("bits", [0, 8, 4, 16])
@pytest.mark.parametrize("cuts", [[1] * 51, [17, 1, 16, 2, 15], [50, 1]], ids=str)
def test_a_result_does_not_depend_on_how_a_prompt_is_cut_into_steps(cuts, bits):
    whole = replace(make_step([(sum(cuts), sum(cuts))]), bits=bits)
    cache = LayerKVCache(*(whole.paged(x) for x in (whole.key_cache, whole.value_cache)))
    pieces, end = [], 0
    for num_new_tokens in cuts:
        start, end = end, end + num_new_tokens
        span = SequenceSpan(num_new_tokens, end, whole.spans[0].block_ids)
        q, k, v = (x[start:end] for x in (whole.q, whole.k, whole.v))
        metadata = plan_attention([span], block_size=BLOCK_SIZE, device=CPU)
        pieces.append(paged_attention(q, k, v, cache, metadata, q.shape[-1] ** -0.5))
    assert_close(torch.cat(pieces), whole.run().double())


def test_new_keys_and_values_are_written_to_their_slots_and_nowhere_else():
    step = make_step(MIXED)
    cache = LayerKVCache(step.paged(step.key_cache), step.paged(step.value_cache))
    cache.store(step.k, step.v, step.metadata().slot_mapping)
    row, expected_keys, expected_values = 0, step.key_cache.clone(), step.value_cache.clone()
    for span in step.spans:
        for position in range(span.context_len - span.num_new_tokens, span.context_len):
            block, offset = span.block_ids[position // BLOCK_SIZE], position % BLOCK_SIZE
            expected_keys[block, offset], expected_values[block, offset] = step.k[row], step.v[row]
            row += 1
    assert torch.equal(cache.key.rows, expected_keys)
    assert torch.equal(cache.value.rows, expected_values)


def test_every_row_of_a_step_is_attended_once():
    metadata = make_step(MIXED).metadata()
    rows = [row for group in metadata.groups for row in group.rows.tolist()]
    for chunk in metadata.chunks:
        rows += range(chunk.start, chunk.end)
    assert sorted(rows) == list(range(sum(num_new_tokens for num_new_tokens, _ in MIXED)))


def test_only_a_chunk_with_earlier_context_is_gathered_from_the_cache():
    chunks = make_step(MIXED).metadata().chunks
    are_first = [chunk.end - chunk.start == chunk.context_len for chunk in chunks]
    assert sorted(set(are_first)) == [False, True]
    assert [chunk.block_ids is None for chunk in chunks] == are_first


def test_no_group_pads_a_sequence_by_more_than_a_quarter():
    lengths = [1, 500, 17, 131, 400, 90, 16, 300, 120, 15, 33]
    metadata = make_step([(1, length) for length in lengths]).metadata()
    assert len(metadata.groups) > 1
    for group in metadata.groups:
        padded = group.block_ids.numel() // len(group.rows)
        for row in group.rows.tolist():
            num_blocks = -(-lengths[row] // BLOCK_SIZE)
            assert 0.75 * padded <= num_blocks <= padded


def test_decoded_sequences_of_one_length_share_a_group():
    metadata = make_step([(1, 40)] * 9).metadata()
    assert [len(group.rows) for group in metadata.groups] == [9]
