"""Attention of a chunk of a prompt over the paged KV cache, causal, with what was cached before.

    out[i] = softmax(scale * q[i] k[a:b]^T) v[a:b],  where token i sees a..b of its own sequence

All keys and values are in the cache already, the chunk's own too: every reader gets what is stored.
A program takes query rows of one KV head, a tile, and walks the pages that any of them sees, a page
at a time (kernels/kv_tile.py). Pages that all rows see whole, all but the last two of a causal tile
and the first of a window, are walked without a mask.

Rows of a tile are tokens x query heads. A long chunk gives a query head a program of its own;
programs of a group run beside each other and find its pages in the L2 cache. A short chunk would
leave most rows of a tile empty, so there the heads of a group are packed into one tile.

However a prompt is cut, a row's bits are the same as long as the launch is (`is_invariant`): a page
that it does not see changes nothing of its sums.
"""

import math
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmflow_engine.kernels.compile_case import CompileCase
from vlmflow_engine.kernels.kv_tile import (
    FLOAT8,
    INT4,
    INT8,
    ROWS,
    first_row,
    kernel_arguments,
    kv_format,
    load_scales,
    load_tile,
    num_lanes,
    pointer_types,
    score_tile,
    tile_elements,
    weigh_tile,
)
from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache
from vlmflow_engine.kernels.paged_metadata import PagedMetadata
from vlmflow_engine.kernels.prefill_launch import constants, launch_config

# Below every score. Not an infinity: a row that has seen nothing yet must stay a number.
_NOTHING_SEEN = tl.constexpr(-1.0e30)
_EVERYTHING = 2**30  # tokens of a window that leaves out none


def paged_prefill(
    q: Tensor,
    cache: LayerKVCache,
    metadata: PagedMetadata,
    *,
    scale: float,
    window: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attend the tokens of the sequences behind the first `num_decodes`.

    q       [num_tokens - num_decodes, num_heads, head_dim]: the step's rows behind those of the
            decoding sequences, the last dimension contiguous
    scale   of q . k, above zero
    window  tokens seen back, the last one included; None: all
    out     as q; made if None. A sequence of length 0 gets zeros.
    """
    _, num_heads, head_dim = q.shape
    _, block_size, num_kv_heads, _ = cache.key.rows.shape
    assert num_heads % num_kv_heads == 0, (num_heads, num_kv_heads)
    assert block_size >= 16 and block_size & (block_size - 1) == 0, block_size
    assert scale > 0 and (window is None or window > 0)
    if out is None:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    assert out.shape == q.shape and q.stride(2) == out.stride(2) == 1
    num_chunks = len(metadata.context_lens) - metadata.num_decodes
    if num_chunks == 0 or metadata.max_chunk_len == 0:
        return out
    group = num_heads // num_kv_heads
    format, lanes = kv_format(cache.key), num_lanes(head_dim)
    config = launch_config(
        q.dtype, group, lanes, format, metadata.max_chunk_len, metadata.is_invariant
    )
    ends = metadata.visible_ends
    grid = (
        num_heads if config.heads == 1 else num_kv_heads,
        triton.cdiv(metadata.max_chunk_len, config.tokens),
        num_chunks,
    )
    _prefill_kernel[grid](
        out,
        q,
        *kernel_arguments(cache.key),
        *kernel_arguments(cache.value),
        metadata.block_tables,
        metadata.table_rows,
        metadata.context_lens,
        metadata.query_starts,
        metadata.query_starts if ends is None else ends,
        metadata.num_decodes,
        num_kv_heads,
        window or _EVERYTHING,
        scale * math.log2(math.e),
        out.stride(0),
        out.stride(1),
        q.stride(0),
        q.stride(1),
        metadata.block_tables.stride(0),
        **constants(q.dtype, group, head_dim, block_size, format, config),
        HAS_WINDOW=window is not None,
        HAS_ENDS=ends is not None,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out


@triton.jit
def _attend(
    sums, queries, pages, first_page, end_page, tile_start, tile_end, num_kv_heads, scale,
    IS_MASKED: tl.constexpr, HEAD_DIM: tl.constexpr, LANES: tl.constexpr, PAGE: tl.constexpr,
    FORMAT: tl.constexpr, DOT_DTYPE: tl.constexpr,
):  # fmt: skip
    """Return the sums with some pages taken in. Without a mask, every row sees all of them."""
    state, state_offset, row_max, row_sum = sums
    q, q_sum, row_starts, row_ends = queries
    key_ptr, key_scales_ptr, value_ptr, value_scales_ptr, table_ptr, head = pages
    for page in range(first_page, end_page):
        row = first_row(tl.load(table_ptr + page), head, num_kv_heads, PAGE)
        tokens = page * PAGE + tl.arange(0, PAGE)
        if IS_MASKED:
            is_read = (tokens >= tile_start) & (tokens < tile_end)
        else:
            is_read = tl.full([PAGE], True, tl.int1)
        keys = load_tile(
            key_ptr, row, is_read, num_kv_heads, PAGE, HEAD_DIM, LANES, FORMAT, DOT_DTYPE
        )
        k_scale, k_offset = load_scales(key_scales_ptr, row, is_read, num_kv_heads, PAGE, FORMAT)
        # s, p: [TOKENS * HEADS, PAGE]
        s = score_tile(q, q_sum, keys, k_scale, k_offset, FORMAT) * scale
        if IS_MASKED:
            is_seen = (tokens[None, :] >= row_starts[:, None]) & (
                tokens[None, :] < row_ends[:, None]
            )
            s = tl.where(is_seen, s, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(s, 1))
        p = tl.exp2(s - new_max[:, None])
        decay = tl.exp2(row_max - new_max)
        row_sum = row_sum * decay + tl.sum(p, 1)
        row_max = new_max
        values = load_tile(
            value_ptr, row, is_read, num_kv_heads, PAGE, HEAD_DIM, LANES, FORMAT, DOT_DTYPE
        )
        v_scale, v_offset = load_scales(value_scales_ptr, row, is_read, num_kv_heads, PAGE, FORMAT)
        state, state_offset = weigh_tile(
            p, values, v_scale, v_offset, state * decay[:, None], state_offset * decay, FORMAT
        )
    return (state, state_offset, row_max, row_sum)


# One kernel for any number: Triton would make others of 1 and of multiples of 16, in the midst of
# the work.
@triton.jit(do_not_specialize=["num_decodes"])
def _prefill_kernel(
    # pointers
    out_ptr, q_ptr, key_ptr, key_scales_ptr, value_ptr, value_scales_ptr,
    block_tables_ptr, table_rows_ptr, context_lens_ptr, query_starts_ptr, visible_ends_ptr,
    # sizes
    num_decodes, num_kv_heads, window, scale,
    # strides, in elements
    out_token_stride, out_head_stride, q_token_stride, q_head_stride, block_table_stride,
    GROUP: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    LANES: tl.constexpr, PAGE: tl.constexpr, FORMAT: tl.constexpr, DOT_DTYPE: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_ENDS: tl.constexpr,
):  # fmt: skip
    sequence = num_decodes + tl.program_id(2)
    chunk_start = tl.load(query_starts_ptr + sequence)
    chunk_len = tl.load(query_starts_ptr + sequence + 1) - chunk_start
    # The last tiles see the most, so they begin first.
    first_token = (tl.num_programs(1) - 1 - tl.program_id(1)) * TOKENS
    if first_token >= chunk_len:
        return
    context_len = tl.load(context_lens_ptr + sequence)
    table_row = tl.load(table_rows_ptr + sequence).to(tl.int64)

    rows = tl.arange(0, TOKENS * HEADS)
    tokens = first_token + rows // HEADS
    if HEADS == 1:
        head = tl.program_id(0) // GROUP
        heads = tl.program_id(0) + rows * 0
        is_row = tokens < chunk_len
    else:
        head = tl.program_id(0)
        heads = head * GROUP + rows % HEADS
        is_row = (tokens < chunk_len) & (rows % HEADS < GROUP)
    elements, is_element = tile_elements(HEAD_DIM, LANES, FORMAT)
    is_stored = is_row[:, None] & is_element[None, :]
    # A decoding sequence has one row of the step, none of q.
    places = (chunk_start - num_decodes + tokens).to(tl.int64)
    q = tl.load(
        q_ptr + (places * q_token_stride + heads * q_head_stride)[:, None] + elements[None, :],
        mask=is_stored, other=0.0,
    )  # fmt: skip
    q_sum = tl.sum(q.to(tl.float32), 1)
    q = q.to(DOT_DTYPE)

    # What a row sees, row_starts to row_ends; what any row of the tile sees, and what all see.
    offset = context_len - chunk_len  # position of the chunk's first token
    if HAS_ENDS:
        row_ends = tl.load(visible_ends_ptr + num_decodes + places, mask=is_row, other=0)
        row_ends = tl.minimum(row_ends, context_len)
        common_end = tl.min(tl.where(is_row, row_ends, context_len), 0)
    else:
        row_ends = tl.where(is_row, tl.minimum(offset + tokens + 1, context_len), 0)
        common_end = offset + first_token + 1
    tile_end = tl.maximum(tl.max(row_ends, 0), 0)
    row_starts = offset + tokens + 1 - window
    tile_start = tl.maximum(offset + first_token + 1 - window, 0)
    end_page = (tile_end + PAGE - 1) // PAGE
    first_page = tl.minimum(tile_start // PAGE, end_page)
    plain_page = first_page
    if HAS_WINDOW:
        last_token = tl.minimum(first_token + TOKENS, chunk_len) - 1
        common_start = tl.maximum(offset + last_token + 1 - window, 0)
        plain_page = tl.minimum((common_start + PAGE - 1) // PAGE, end_page)
    ragged_page = tl.maximum(tl.minimum(common_end, tile_end) // PAGE, plain_page)

    sums = (
        tl.full([TOKENS * HEADS, LANES], 0.0, tl.float32),
        tl.full([TOKENS * HEADS], 0.0, tl.float32),
        tl.full([TOKENS * HEADS], _NOTHING_SEEN, tl.float32),
        tl.full([TOKENS * HEADS], 0.0, tl.float32),
    )
    queries = (q, q_sum, row_starts, row_ends)
    table_ptr = block_tables_ptr + table_row * block_table_stride
    pages = (key_ptr, key_scales_ptr, value_ptr, value_scales_ptr, table_ptr, head)
    if HAS_WINDOW:
        sums = _attend(
            sums, queries, pages, first_page, plain_page, tile_start, tile_end, num_kv_heads, scale,
            True, HEAD_DIM, LANES, PAGE, FORMAT, DOT_DTYPE,
        )  # fmt: skip
    sums = _attend(
        sums, queries, pages, plain_page, ragged_page, tile_start, tile_end, num_kv_heads, scale,
        False, HEAD_DIM, LANES, PAGE, FORMAT, DOT_DTYPE,
    )  # fmt: skip
    sums = _attend(
        sums, queries, pages, ragged_page, end_page, tile_start, tile_end, num_kv_heads, scale,
        True, HEAD_DIM, LANES, PAGE, FORMAT, DOT_DTYPE,
    )  # fmt: skip
    state, state_offset, _, row_sum = sums
    result = (state + state_offset[:, None]) / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]
    tl.store(
        out_ptr
        + (places * out_token_stride + heads * out_head_stride)[:, None]
        + elements[None, :],
        result.to(out_ptr.dtype.element_ty),
        mask=is_stored,
    )


def paged_prefill_reference(
    q: Tensor,
    cache: LayerKVCache,
    metadata: PagedMetadata,
    *,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """The same in float64, one sequence after the other."""
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    block_size = cache.key.rows.shape[1]
    for sequence in range(metadata.num_decodes, len(metadata.context_lens)):
        first, last = metadata.query_starts[sequence : sequence + 2].tolist()
        length = int(metadata.context_lens[sequence])
        if length == 0:
            continue
        own = slice(first - metadata.num_decodes, last - metadata.num_decodes)
        table = metadata.block_tables[int(metadata.table_rows[sequence])]
        blocks = table[: -(-length // block_size)].long()
        keys, values = (  # [tokens, num_heads, head_dim]
            rows.read_blocks(blocks, torch.float32)[:length]
            .double()
            .repeat_interleave(q.shape[1] // rows.rows.shape[2], dim=1)
            for rows in (cache.key, cache.value)
        )
        positions = torch.arange(length - (last - first), length, device=q.device)[:, None]
        tokens = torch.arange(length, device=q.device)
        ends = positions + 1
        if metadata.visible_ends is not None:
            ends = metadata.visible_ends[first:last, None].long()
        is_seen = tokens < ends
        if window is not None:
            is_seen &= tokens > positions - window
        scores = scale * torch.einsum("qhd,thd->hqt", q[own].double(), keys)
        p = scores.masked_fill(~is_seen, -math.inf).softmax(dim=-1)
        out[own] = torch.einsum("hqt,thd->qhd", p, values.nan_to_num()).to(q.dtype)
    return out


def compile_cases() -> list[CompileCase]:
    """Long and short chunks of each format, windows with image spans, and float32 for parity."""
    cases = [
        *(
            _compile_case(torch.bfloat16, 7, 128, format, chunk_len)
            for format in (ROWS, INT8, INT4, FLOAT8)
            for chunk_len in (4096, 32)
        ),
        _compile_case(torch.bfloat16, 1, 96, ROWS, 4096),
        _compile_case(torch.bfloat16, 7, 64, ROWS, 4096),
        _compile_case(torch.bfloat16, 2, 256, ROWS, 4096, HAS_WINDOW=True, HAS_ENDS=True),
        _compile_case(torch.float32, 2, 64, ROWS, 4096),
    ]
    # They spill up to 620 bytes.
    reason = "tiles are Hopper's; other GPUs run them, but slower than they could"
    return cases + [
        replace(
            case,
            name=f"{case.name} elsewhere",
            allowed_spills=reason,
            # e4m3 is converted in hardware from compute capability 8.9 on, and by no kernel before.
            architectures=(100,) if case.constants["FORMAT"] == FLOAT8 else (80, 100),
        )
        for case in cases
    ]


def _compile_case(
    dtype: torch.dtype, group: int, head_dim: int, format: str, chunk_len: int, **has: bool
) -> CompileCase:
    config = launch_config(dtype, group, num_lanes(head_dim), format, chunk_len, False)
    name = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    stored = pointer_types(format, name)
    pointers = (f"*{name}", f"*{name}", *stored, *stored, *["*i32"] * 5)
    sizes = ("i32", "i32", "i32", "fp32", *["i32"] * 5)
    names = _prefill_kernel.arg_names
    return CompileCase(
        name=f"prefill {name} {format} GQA{group} D{head_dim} chunk{chunk_len}",
        kernel=_prefill_kernel,
        signature=dict(zip(names, (*pointers, *sizes), strict=False)),
        constants=constants(dtype, group, head_dim, 64, format, config)
        | {"HAS_WINDOW": False, "HAS_ENDS": False}
        | has,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        # The format is for capacity: two of 255 registers are the least that 128 rows spill.
        allowed_spills="8 bytes, to keep 128 rows a tile" if format == INT4 else "",
        aligned=(*names[: len(pointers)], *names[15:19]),
        architectures=(90,),
    )
