"""A tile is a page of one head as the cache itself reads it, and nothing else of the cache."""

import math

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.engine.kernels.kv_formats import FORMATS, paged_rows, poison_slots, read_back
from vlmflow_engine.kernels import kv_tile
from vlmflow_engine.kernels.kv_tile import (
    first_row,
    load_scales,
    load_tile,
    num_lanes,
    score_tile,
    tile_elements,
    weigh_tile,
)

NUM_BLOCKS, PAGE, NUM_HEADS = 3, 16, 3
ROWS = 16  # of queries


@triton.jit
def _tile_kernel(
    q_ptr,  # [ROWS, HEAD_DIM]
    p_ptr,  # [ROWS, PAGE]
    rows_ptr,
    scales_ptr,
    scores_ptr,  # [ROWS, PAGE]
    out_ptr,  # [ROWS, HEAD_DIM]
    block_ptr,
    head,
    num_kv_heads,
    num_visible,
    HEAD_DIM: tl.constexpr,
    LANES: tl.constexpr,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,
    FORMAT: tl.constexpr,
):
    elements, is_element = tile_elements(HEAD_DIM, LANES, FORMAT)
    queries, tokens = tl.arange(0, ROWS), tl.arange(0, PAGE)
    places = queries[:, None] * HEAD_DIM + elements[None, :]
    q = tl.load(q_ptr + places, mask=is_element[None, :], other=0.0)
    p = tl.load(p_ptr + queries[:, None] * PAGE + tokens[None, :])
    is_visible = tokens < num_visible
    row = first_row(tl.load(block_ptr), head, num_kv_heads, PAGE)
    tile = load_tile(
        rows_ptr, row, is_visible, num_kv_heads, PAGE, HEAD_DIM, LANES, FORMAT, tl.float32
    )
    scale, offset = load_scales(scales_ptr, row, is_visible, num_kv_heads, PAGE, FORMAT)
    scores = score_tile(q, tl.sum(q, axis=1), tile, scale, offset, FORMAT)
    tl.store(scores_ptr + queries[:, None] * PAGE + tokens[None, :], scores)
    out, out_offset = weigh_tile(
        p,
        tile,
        scale,
        offset,
        tl.full([ROWS, LANES], 0.0, tl.float32),
        tl.full([ROWS], 0.0, tl.float32),
        FORMAT,
    )
    tl.store(out_ptr + places, out + out_offset[:, None], mask=is_element[None, :])


def run(format: str, head_dim: int, *, num_visible: int, sought: int = 2) -> tuple[Tensor, ...]:
    """Scores and weighed values of one page and head, and what they should be."""
    generator = torch.Generator().manual_seed(head_dim)
    stored = torch.randn(NUM_BLOCKS, PAGE, NUM_HEADS, head_dim, generator=generator) + 0.5
    q = torch.randn(ROWS, head_dim, generator=generator)
    p = torch.rand(ROWS, PAGE, generator=generator)
    p[:, num_visible:] = 0
    rows = paged_rows(stored, format)
    read = read_back(rows)[sought, :, 1]
    slots = torch.arange(NUM_BLOCKS * PAGE)
    lo = sought * PAGE
    poison_slots(rows, slots[(slots < lo) | (slots >= lo + num_visible)])
    scores, out = torch.full((ROWS, PAGE), math.nan), torch.full((ROWS, head_dim), math.nan)
    rows_ptr, scales_ptr = kv_tile.kernel_arguments(rows)
    _tile_kernel[(1,)](
        q,
        p,
        rows_ptr,
        scales_ptr,
        scores,
        out,
        torch.tensor([sought], dtype=torch.int32),
        1,
        NUM_HEADS,
        num_visible,
        HEAD_DIM=head_dim,
        LANES=num_lanes(head_dim),
        PAGE=PAGE,
        ROWS=ROWS,
        FORMAT=kv_tile.kv_format(rows),
    )
    return scores[:, :num_visible], q @ read[:num_visible].T, out, p @ read


@pytest.mark.parametrize("head_dim", [16, 64, 72, 96, 128])
@pytest.mark.parametrize("format", FORMATS)
def test_scores_and_values_are_those_of_the_rows_as_they_are_read_back(format, head_dim):
    scores, expected_scores, out, expected_out = run(format, head_dim, num_visible=PAGE)
    torch.testing.assert_close(scores, expected_scores, rtol=1e-5, atol=2e-4)
    torch.testing.assert_close(out, expected_out, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("num_visible", [0, 1, PAGE - 1])
@pytest.mark.parametrize("format", FORMATS)
def test_tokens_that_are_not_visible_may_hold_anything(format, num_visible):
    scores, expected_scores, out, expected_out = run(format, 96, num_visible=num_visible)
    torch.testing.assert_close(scores, expected_scores, rtol=1e-5, atol=2e-4)
    torch.testing.assert_close(out, expected_out, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("format", FORMATS)
def test_pointers_are_of_the_types_that_kernels_are_compiled_for(format):
    types = {
        torch.float32: "*fp32",
        torch.uint8: "*u8",
        torch.int32: "*i32",
        torch.float8_e4m3fn: "*fp8e4nv",
        torch.bfloat16: "*bf16",
    }
    rows = paged_rows(torch.zeros(1, 16, 1, 16), format)
    named = kv_tile.pointer_types(kv_tile.kv_format(rows), "fp32")
    assert named == tuple(types[x.dtype] for x in kv_tile.kernel_arguments(rows))
