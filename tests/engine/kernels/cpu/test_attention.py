"""The C++ attention with every instruction set: beside float64 over awkward sizes, bit by bit."""

import math
from dataclasses import replace

import pytest
import torch

from tests.engine.kernels.cpu.steps import (
    TOLERANCES,
    Span,
    check,
    copy,
    error,
    expected,
    make_step,
    turned,
)
from vlmflow_engine.kernels.cpu.attention import can_attend

pytestmark = pytest.mark.usefixtures("level")

# Of a page, a tile of 64 tokens and a split of 512: one less, the same, one more; and padded rows.
DECODES = [Span(n) for n in (0, 14, 15, 16, 130, 62, 63, 64, 510, 511, 512, 1090)] + [Span(0, 0)]
CHUNKS = [Span(0, 2), Span(0, 131), Span(17, 16), Span(63, 2), Span(130, 65), Span(5, 64)]
KINDS = [
    (torch.float32, "rows"),
    (torch.bfloat16, "rows"),
    (torch.float32, "int8"),
    (torch.bfloat16, "int8"),
]


@pytest.mark.parametrize("dtype, format", KINDS, ids=str)
def test_decodes_and_chunks_of_all_lengths_are_attended(dtype, format):
    check(make_step([*DECODES, *CHUNKS], dtype=dtype, format=format))


@pytest.mark.parametrize("dtype, format", KINDS, ids=str)
@pytest.mark.parametrize("heads, kv_heads", [(1, 1), (3, 1), (10, 2), (7, 1), (16, 2), (11, 1)])
def test_heads_of_a_group_share_their_keys(heads, kv_heads, dtype, format):
    spans = [Span(16), Span(130), Span(3, 40)]
    check(make_step(spans, heads=heads, kv_heads=kv_heads, dtype=dtype, format=format))


@pytest.mark.parametrize("dtype, format", KINDS, ids=str)
@pytest.mark.parametrize("head_dim", [2, 8, 32, 50, 72, 80, 96, 112, 128, 256, 512])
def test_heads_may_have_any_even_size(head_dim, dtype, format):
    check(
        make_step([Span(0), Span(70), Span(9, 21)], head_dim=head_dim, dtype=dtype, format=format)
    )


@pytest.mark.parametrize("block_size", [1, 7, 64, 200])
def test_pages_may_have_any_size(block_size):
    check(make_step([Span(0), Span(63), Span(515), Span(9, 100)], block_size=block_size))


@pytest.mark.parametrize("dtype, format", KINDS, ids=str)
@pytest.mark.parametrize("window", [1, 20, 64, 600])
def test_a_window_hides_what_is_further_back(window, dtype, format):
    spans = [Span(0), Span(18), Span(19), Span(130), Span(1100), Span(0, 40), Span(100, 70)]
    check(make_step(spans, window=window, dtype=dtype, format=format))


@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_tokens_of_an_image_see_all_of_it(dtype, window):
    step = make_step([Span(5), Span(10, 150)], dtype=dtype, window=window)
    ends = torch.cat([torch.tensor([6]), torch.arange(11, 161)])
    ends[1 + 20 : 1 + 90] = 10 + 90  # an image over more than a tile
    ends[1 + 100 : 1 + 105] = 10 + 105
    step = replace(step, metadata=replace(step.metadata, visible_ends=ends.int()))
    check(step)
    causal = replace(step, metadata=replace(step.metadata, visible_ends=None))
    assert error(step.run(), expected(causal)) > TOLERANCES[dtype]


@pytest.mark.parametrize("dtype, format", KINDS, ids=str)
def test_keys_and_values_are_stored_as_plain_torch_stores_them(dtype, format):
    step = make_step([Span(0), Span(16), Span(0, 0), Span(3, 20)], dtype=dtype, format=format)
    reference = copy(step.cache)
    is_stored = step.metadata.slot_mapping >= 0
    slots = step.metadata.slot_mapping[is_stored]
    reference.store(turned(step.k, step.cos_sin)[is_stored], step.v[is_stored], slots)
    others = torch.ones(step.cache.key.rows.flatten(0, 1).shape[0], dtype=torch.bool)
    others[slots] = False
    before = copy(step.cache)
    step.run()
    for got, wanted, old in (
        (step.cache.key, reference.key, before.key),
        (step.cache.value, reference.value, before.value),
    ):
        for name in ("rows", "scales"):
            if getattr(got, name) is None:
                continue
            now, want, was = (getattr(x, name).flatten(0, 1) for x in (got, wanted, old))
            if now.is_floating_point():  # a turned key may be rounded to its neighbour
                tolerance = 0 if got is step.cache.value else TOLERANCES[dtype]
                torch.testing.assert_close(now[slots], want[slots], rtol=tolerance, atol=tolerance)
            else:
                most = 0 if got is step.cache.value else 1
                assert (now[slots].int() - want[slots].int()).abs().max() <= most
            assert torch.equal(now[others].nan_to_num(7), was[others].nan_to_num(7))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_codes_are_those_of_plain_torch_to_the_bit(dtype):
    step = make_step([Span(0, 40)], dtype=dtype, format="int8", turns=False)
    values = step.v.clone()
    values[0], values[1] = 0, 1.7  # equal elements: their scale is zero
    values[2, :, 3], values[3] = 1e30, -1e-30
    values[4, 0, 0], values[5, 1, 1] = math.nan, math.inf
    step = replace(step, v=values)
    step.run()
    reference = copy(step.cache)
    reference.store(step.k, values, step.metadata.slot_mapping)
    for got, want in ((step.cache.key, reference.key), (step.cache.value, reference.value)):
        slots = step.metadata.slot_mapping
        scales, wanted = (x.scales.flatten(0, 1)[slots].float() for x in (got, want))
        assert torch.equal(scales.nan_to_num(7), wanted.nan_to_num(7))
        is_number = wanted.isfinite().all(dim=-1)
        codes, wanted = (x.rows.flatten(0, 1)[slots] for x in (got, want))
        assert torch.equal(codes[is_number], wanted[is_number])


def test_angles_may_be_float_where_the_rest_is_bfloat16():
    step = make_step([Span(40), Span(3, 20)], dtype=torch.bfloat16)
    check(replace(step, cos_sin=tuple(angles.float() for angles in step.cos_sin)))


@pytest.mark.parametrize("dtype, format", KINDS, ids=str)
def test_nothing_turns_where_there_are_no_angles(dtype, format):
    check(make_step([Span(40), Span(3, 20)], dtype=dtype, format=format, turns=False))


@pytest.mark.parametrize("dtype, format", KINDS, ids=str)
def test_a_sequence_has_the_same_bits_alone_and_on_any_number_of_threads(dtype, format):
    step = make_step([Span(1090), Span(40), Span(0, 0), Span(90, 77)], dtype=dtype, format=format)
    together = step.run()
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert torch.equal(step.run(), together)
    finally:
        torch.set_num_threads(before)
    for number in range(len(step.spans)):
        first, end = step.metadata.query_starts[number : number + 2].tolist()
        assert torch.equal(step.only(number).run(), together[first:end])


@pytest.mark.parametrize("dtype, format", KINDS, ids=str)
def test_however_a_prompt_is_cut_its_tokens_have_the_same_bits(dtype, format):
    whole = make_step([Span(0, 150)], dtype=dtype, format=format)
    wanted = whole.run()
    for cut in (2, 64, 101, 148):
        rows = {"past": slice(0, cut), "rest": slice(cut, 150)}
        cache = copy(whole.cache)
        got = []
        for own, length in ((rows["past"], cut), (rows["rest"], 150)):
            metadata = replace(
                whole.metadata,
                slot_mapping=whole.metadata.slot_mapping[own],
                context_lens=torch.tensor([length], dtype=torch.int32),
                query_starts=torch.tensor([0, own.stop - own.start], dtype=torch.int32),
            )
            part = replace(
                whole,
                q=whole.q[own],
                k=whole.k[own],
                v=whole.v[own],
                cos_sin=tuple(angles[own] for angles in whole.cos_sin),
                cache=cache,
                metadata=metadata,
            )
            got.append(part.run())
        assert torch.equal(torch.cat(got), wanted)


def test_what_is_no_number_stays_with_its_sequence():
    step = make_step([Span(40), Span(70), Span(0, 30), Span(20, 20)])
    wanted = step.run()
    step.cache.value.rows.flatten(0, 1)[step.slots[0][3]] = math.nan
    step.cache.key.rows.flatten(0, 1)[step.slots[3][3]] = math.nan
    got = step.run()
    assert got[0].isnan().all() and got[32:].isnan().all()
    assert torch.equal(got[1:32], wanted[1:32])


def test_scores_that_are_far_apart_overflow_nothing():
    step = make_step([Span(100), Span(0, 40)], turns=False)
    step = replace(step, q=step.q * 1e4)
    assert error(step.run(), expected(step)) < 1e-4  # scores of 1e5 have 2e-3 of rounding
    assert step.run().isfinite().all()


def test_a_step_of_no_tokens_is_no_work():
    step = make_step([Span(4)])
    metadata = replace(
        step.metadata,
        slot_mapping=torch.empty(0, dtype=torch.int64),
        table_rows=torch.empty(0, dtype=torch.int32),
        context_lens=torch.empty(0, dtype=torch.int32),
        query_starts=torch.zeros(1, dtype=torch.int32),
        num_decodes=0,
    )
    none = [x[:0] for x in (step.q, step.k, step.v)]
    empty = replace(step, q=none[0], k=none[1], v=none[2], cos_sin=None, metadata=metadata)
    assert empty.run().shape == (0, 4, 64)


def test_what_has_no_kernel_is_known():
    assert can_attend(torch.float32, 64, 0) and can_attend(torch.bfloat16, 512, 8)
    assert not can_attend(torch.float16, 64, 0)
    assert not can_attend(torch.float32, 65, 0)
    assert not can_attend(torch.float32, 514, 0)
    assert not can_attend(torch.float32, 64, 4)
    assert not can_attend(torch.float32, 64, 16)
