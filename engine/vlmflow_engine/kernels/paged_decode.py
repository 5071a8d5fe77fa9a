"""Attention of one new token a sequence over the paged KV cache.

The query heads of a KV head are packed as rows of one dot, padded to 16, and a page is a tile: keys
and values are read once, by whoever attends. Programs are as many as fit on the device, a fixed
number a KV head; they walk along the items of a work list (kernels/decode_work.py). What is all of
a sequence is written out; of the others each item leaves a maximum, a sum and an output that is not
divided yet, all float32, which another kernel merges (kernels/merge_splits.py).

The floor is the time that keys and values take to be read, bytes of KV over the bandwidth: 28,672
bytes a token of all layers for Qwen2-VL-2B, 57,344 for Qwen2.5-VL-7B, at 4.3 TB/s on an H200. A
query row does 1 flop a byte, so 8 of them are far below the 184 where arithmetic would count.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmflow_engine.kernels.compile_case import CompileCase
from vlmflow_engine.kernels.decode_work import ITEM_FIELDS, decode_work
from vlmflow_engine.kernels.dispatch import dot_dtype
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
from vlmflow_engine.kernels.merge_splits import merge_splits
from vlmflow_engine.kernels.paged_metadata import PagedMetadata

_LOG2_E = 1.4426950408889634
_MIN_DOT_ROWS = 16
# Two programs fit on an SM, by registers (218 a thread at most, of 256) and by shared memory (71
# of 113 KB, head_dim 128 in bfloat16): while one takes its softmax or begins an item, the loads of
# the other keep the memory busy.
_PROGRAMS_PER_SM = 2
# 4 warps: each has 16 tokens of a page of 64 in the first dot and 32 elements in the second; 8 run
# a quarter more instructions in all. 3 stages: a page of keys and values (32 KB) is under way while
# one is computed with, so 64 KB an SM; 4.3 TB/s with a latency of a microsecond want 33.
_NUM_WARPS = 4
_NUM_STAGES = 3

_D64_SPILLS = "two registers an item, outside the loop over pages: ptxas stops at 80 by itself"


def paged_decode(
    q: Tensor,
    cache: LayerKVCache,
    metadata: PagedMetadata,
    *,
    scale: float,
    window: int | None = None,
    out: Tensor | None = None,
    num_sms: int | None = None,
) -> Tensor:
    """Attend to all that the step's first `num_decodes` sequences have stored.

    q        [num_decodes, num_heads, head_dim], the last dimension contiguous
    scale    of q . k, above zero
    window   tokens seen back, the last one included; None: all
    out      as q; made if None. A sequence of length 0 gets zeros.
    num_sms  of the device; None: asked of it
    """
    num_blocks, block_size, num_kv_heads, _ = cache.key.rows.shape
    num_decodes, num_heads, head_dim = q.shape
    assert num_decodes == metadata.num_decodes and num_heads % num_kv_heads == 0
    assert block_size >= 16 and block_size & (block_size - 1) == 0
    assert scale > 0 and (window is None or window > 0)
    assert q.stride(2) == 1
    if out is None:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    assert out.shape == q.shape and out.stride(2) == 1
    if num_decodes == 0:
        return out

    num_workers = max(1, _PROGRAMS_PER_SM * (num_sms or _num_sms(q.device)) // num_kv_heads)
    work = decode_work(metadata, block_size=block_size, window=window, num_workers=num_workers)
    constants = _constants(
        q.dtype, num_heads // num_kv_heads, head_dim, block_size, kv_format(cache.key)
    )
    lanes = constants["LANES"]
    partial_out = q.new_empty((len(work.items), num_heads, lanes), dtype=torch.float32)
    assert partial_out.numel() < 2**31
    partial_stats = q.new_empty((len(work.items), num_heads, 2), dtype=torch.float32)
    _decode_kernel[(num_workers * num_kv_heads,)](
        q,
        *kernel_arguments(cache.key),
        *kernel_arguments(cache.value),
        out,
        partial_out,
        partial_stats,
        metadata.block_tables,
        work.items,
        work.worker_items,
        num_kv_heads,
        2**31 - 1 if window is None else window,
        scale * _LOG2_E,
        q.stride(0),
        q.stride(1),
        out.stride(0),
        out.stride(1),
        metadata.block_tables.stride(0),
        **constants,
        num_warps=_NUM_WARPS,
        num_stages=_NUM_STAGES,
    )
    merge_splits(out, partial_out, partial_stats, work.sequence_items, format=constants["FORMAT"])
    return out


@triton.jit
def _decode_kernel(
    # Pointers
    q_ptr,
    key_ptr,
    key_scales_ptr,
    value_ptr,
    value_scales_ptr,
    out_ptr,
    partial_out_ptr,  # [items, heads, LANES]
    partial_stats_ptr,  # [items, heads, 2]: maximum of the scores in base 2, sum
    block_tables_ptr,
    items_ptr,
    worker_items_ptr,
    # Dimensions
    num_kv_heads,
    window,
    scale,  # times log2(e)
    # Strides
    q_token_stride,
    q_head_stride,
    out_token_stride,
    out_head_stride,
    block_table_stride,
    # Meta-parameters
    GROUP: tl.constexpr,  # query heads of a KV head
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    LANES: tl.constexpr,
    PAGE: tl.constexpr,
    FORMAT: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
):
    # Neighbours attend to the same pages for other heads: together they read whole pages.
    head = tl.program_id(0) % num_kv_heads
    worker = tl.program_id(0) // num_kv_heads
    elements, is_element = tile_elements(HEAD_DIM, LANES, FORMAT)
    lanes = tl.arange(0, LANES)
    rows = tl.arange(0, ROWS)
    heads = head * GROUP + rows
    is_row = rows < GROUP
    is_stored = is_row[:, None] & is_element[None, :]

    first_item = tl.load(worker_items_ptr + 2 * worker)
    end_item = tl.load(worker_items_ptr + 2 * worker + 1)
    for item in range(first_item, end_item):
        fields = items_ptr + item * ITEM_FIELDS
        sequence = tl.load(fields).to(tl.int64)
        table = block_tables_ptr + tl.load(fields + 1).to(tl.int64) * block_table_stride
        length = tl.load(fields + 2)
        first_page = tl.load(fields + 3)
        end_page = tl.load(fields + 4)
        is_whole = tl.load(fields + 5)
        q_places = heads[:, None] * q_head_stride + elements[None, :]
        q = tl.load(q_ptr + sequence * q_token_stride + q_places, mask=is_stored, other=0.0)
        q_sum = tl.sum(q.to(tl.float32), axis=1)
        q = q.to(DOT_DTYPE)

        maximum = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.full([ROWS], 0.0, tl.float32)
        attended = tl.full([ROWS, LANES], 0.0, tl.float32)
        attended_offset = tl.full([ROWS], 0.0, tl.float32)
        # A page's number is loaded one page ahead, for the addresses of its loads wait for it.
        block = tl.load(table + first_page, mask=first_page < end_page, other=0)
        for page in range(first_page, end_page):
            next_block = tl.load(table + page + 1, mask=page + 1 < end_page, other=0)
            tokens = page * PAGE + tl.arange(0, PAGE)
            # One of the last `window`; a token behind the last is a very large number here.
            is_visible = (length - 1 - tokens).to(tl.uint32, bitcast=True) < window
            row = first_row(block, head, num_kv_heads, PAGE)
            keys = load_tile(
                key_ptr, row, is_visible, num_kv_heads, PAGE, HEAD_DIM, LANES, FORMAT, DOT_DTYPE
            )
            values = load_tile(
                value_ptr, row, is_visible, num_kv_heads, PAGE, HEAD_DIM, LANES, FORMAT, DOT_DTYPE
            )
            k_scale, k_offset = load_scales(
                key_scales_ptr, row, is_visible, num_kv_heads, PAGE, FORMAT
            )
            v_scale, v_offset = load_scales(
                value_scales_ptr, row, is_visible, num_kv_heads, PAGE, FORMAT
            )
            scores = score_tile(q, q_sum, keys, k_scale, k_offset, FORMAT) * scale
            # Every page of an item has a visible token, so the maximum is a number from here on.
            scores = tl.where(is_visible[None, :], scores, float("-inf"))
            new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
            decay = tl.exp2(maximum - new_maximum)
            p = tl.exp2(scores - new_maximum[:, None])
            total = total * decay + tl.sum(p, axis=1)
            attended, attended_offset = weigh_tile(
                p,
                values,
                v_scale,
                v_offset,
                attended * decay[:, None],
                attended_offset * decay,
                FORMAT,
            )
            maximum = new_maximum
            block = next_block
        attended += attended_offset[:, None]

        if is_whole != 0:
            places = out_ptr + sequence * out_token_stride
            places += heads[:, None] * out_head_stride + elements[None, :]
            # An item without pages is of a sequence without tokens, and zeros are its output.
            result = attended / tl.where(first_page < end_page, total, 1.0)[:, None]
            tl.store(places, result.to(out_ptr.dtype.element_ty), mask=is_stored)
        else:
            place = item * (num_kv_heads * GROUP) + heads
            tl.store(
                partial_out_ptr + place[:, None] * LANES + lanes[None, :],
                attended,
                mask=is_row[:, None],
            )
            tl.store(partial_stats_ptr + 2 * place, maximum, mask=is_row)
            tl.store(partial_stats_ptr + 2 * place + 1, total, mask=is_row)


def paged_decode_reference(
    q: Tensor,
    cache: LayerKVCache,
    metadata: PagedMetadata,
    *,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """The same in float64, sequence by sequence; of q's dtype."""
    out = torch.zeros_like(q)
    block_size = cache.key.rows.shape[1]
    for sequence in range(metadata.num_decodes):
        length = int(metadata.context_lens[sequence])
        if length == 0:
            continue
        table = metadata.block_tables[int(metadata.table_rows[sequence])]
        blocks = table[: -(-length // block_size)].long()
        seen = slice(max(length - (window or length), 0), length)
        # [tokens, num_kv_heads, head_dim]
        keys, values = (
            rows.read_blocks(blocks, torch.float32)[seen].double()
            for rows in (cache.key, cache.value)
        )
        # [num_kv_heads, group, head_dim]
        queries = q[sequence].double().view(keys.shape[1], -1, q.shape[-1])
        p = torch.softmax(scale * torch.einsum("hgd,thd->hgt", queries, keys), dim=-1)
        out[sequence] = torch.einsum("hgt,thd->hgd", p, values).flatten(0, 1).to(q.dtype)
    return out


def _constants(
    dtype: torch.dtype, group: int, head_dim: int, block_size: int, format: str
) -> dict[str, Any]:
    return {
        "GROUP": group,
        "ROWS": max(_MIN_DOT_ROWS, triton.next_power_of_2(group)),
        "HEAD_DIM": head_dim,
        "LANES": num_lanes(head_dim),
        "PAGE": block_size,
        "FORMAT": format,
        "DOT_DTYPE": getattr(tl, str(dot_dtype(dtype)).removeprefix("torch.")),
    }


@cache
def _num_sms(device: torch.device) -> int:
    if device.type == "cpu":  # the interpreter runs programs one by one
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


def compile_cases() -> list[CompileCase]:
    """What is served: GQA 1, 7 and 8, every format of the cache, head_dim 64 and 96."""
    bf16, fp32 = torch.bfloat16, torch.float32
    cases = [
        _decode_case(bf16, 1, 128, 64, ROWS),
        _decode_case(bf16, 7, 128, 64, ROWS),
        _decode_case(bf16, 8, 128, 64, ROWS),
        _decode_case(bf16, 7, 128, 64, INT8),
        _decode_case(bf16, 7, 128, 64, INT4),
        _decode_case(bf16, 7, 128, 64, FLOAT8),
        _decode_case(bf16, 7, 64, 64, ROWS),
        _decode_case(bf16, 1, 96, 64, ROWS),
        _decode_case(fp32, 2, 64, 16, ROWS),
    ]
    return cases


def _decode_case(
    dtype: torch.dtype, group: int, head_dim: int, block_size: int, format: str
) -> CompileCase:
    name = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    rows, scales = pointer_types(format, name)
    arguments = _decode_kernel.arg_names
    return CompileCase(
        name=f"decode {name} {format} GQA{group} D{head_dim} page{block_size}",
        kernel=_decode_kernel,
        signature={
            "q_ptr": f"*{name}",
            "key_ptr": rows,
            "key_scales_ptr": scales,
            "value_ptr": rows,
            "value_scales_ptr": scales,
            "out_ptr": f"*{name}",
            "partial_out_ptr": "*fp32",
            "partial_stats_ptr": "*fp32",
            **dict.fromkeys(arguments[8:13], "i32"),
            **dict.fromkeys(arguments[8:11], "*i32"),
            "scale": "fp32",
            **dict.fromkeys(arguments[14:19], "i32"),
        },
        constants=_constants(dtype, group, head_dim, block_size, format),
        num_warps=_NUM_WARPS,
        num_stages=_NUM_STAGES,
        aligned=(
            *arguments[:11],
            "q_token_stride",
            "q_head_stride",
            "out_token_stride",
            "out_head_stride",
        ),
        allowed_spills=_D64_SPILLS if head_dim == 64 and dtype == torch.bfloat16 else "",
        # e4m3 is converted in hardware from compute capability 8.9 on, and by no kernel before.
        architectures=(90, 100) if format == FLOAT8 else (80, 90, 100),
    )
