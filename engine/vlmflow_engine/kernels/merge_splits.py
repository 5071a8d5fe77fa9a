"""What several programs attended to of one sequence becomes its output.

Each item of a sequence (kernels/decode_work.py) left the maximum of its scores, in base 2, the sum
of the weights below it, and an output that is not divided by it yet. They are merged in the order
of the items, 16 at a time, whoever made them.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from vlmflow_engine.kernels.compile_case import CompileCase
from vlmflow_engine.kernels.kv_tile import ROWS, num_lanes, tile_elements


def merge_splits(
    out: Tensor,
    partial_out: Tensor,
    partial_stats: Tensor,
    sequence_items: Tensor,
    *,
    format: str,
) -> None:
    """Write the output of sequences that have not exactly one item.

    out             [num_decodes, num_heads, head_dim], the last dimension contiguous
    partial_out     [num_items, num_heads, lanes] float32, lanes as kernels/kv_tile.py orders them
    partial_stats   [num_items, num_heads, 2] float32: maximum, sum
    sequence_items  [num_decodes, 2] int32: a sequence's first item, and its end
    """
    num_decodes, num_heads, head_dim = out.shape
    _merge_kernel[(num_decodes, num_heads)](
        out,
        partial_out,
        partial_stats,
        sequence_items,
        num_heads,
        out.stride(0),
        out.stride(1),
        **_constants(head_dim, format),
        num_warps=4,
    )


@triton.jit
def _merge_kernel(
    # Pointers
    out_ptr,
    partial_out_ptr,
    partial_stats_ptr,
    sequence_items_ptr,
    # Dimensions
    num_heads,
    # Strides
    out_token_stride,
    out_head_stride,
    # Meta-parameters
    HEAD_DIM: tl.constexpr,
    LANES: tl.constexpr,
    FORMAT: tl.constexpr,
    CHUNK: tl.constexpr,  # items read at a time
):
    """out = sum of out_i 2^(max_i - max) / sum of sum_i 2^(max_i - max), over a sequence's items.

    A sequence of one item is written already; that of none gets zeros.
    """
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    first_item = tl.load(sequence_items_ptr + 2 * sequence)
    end_item = tl.load(sequence_items_ptr + 2 * sequence + 1)
    if end_item - first_item != 1:
        elements, is_element = tile_elements(HEAD_DIM, LANES, FORMAT)
        lanes = tl.arange(0, LANES)
        maximum = float("-inf")
        total = 0.0
        merged = tl.full([LANES], 0.0, tl.float32)
        for chunk in range(first_item, end_item, CHUNK):
            items = chunk + tl.arange(0, CHUNK)
            is_item = items < end_item
            place = items * num_heads + head
            maxima = tl.load(partial_stats_ptr + 2 * place, mask=is_item, other=float("-inf"))
            totals = tl.load(partial_stats_ptr + 2 * place + 1, mask=is_item, other=0.0)
            parts = tl.load(
                partial_out_ptr + place[:, None] * LANES + lanes[None, :],
                mask=is_item[:, None],
                other=0.0,
            )
            new_maximum = tl.maximum(maximum, tl.max(maxima, axis=0))
            decay = tl.exp2(maximum - new_maximum)
            weights = tl.exp2(maxima - new_maximum)
            total = total * decay + tl.sum(weights * totals, axis=0)
            merged = merged * decay + tl.sum(weights[:, None] * parts, axis=0)
            maximum = new_maximum
        result = merged / tl.where(first_item < end_item, total, 1.0)
        places = out_ptr + sequence * out_token_stride + head * out_head_stride
        tl.store(places + elements, result.to(out_ptr.dtype.element_ty), mask=is_element)


def _constants(head_dim: int, format: str) -> dict[str, Any]:
    return {"HEAD_DIM": head_dim, "LANES": num_lanes(head_dim), "FORMAT": format, "CHUNK": 16}


def compile_cases() -> list[CompileCase]:
    """Of 128 elements in bfloat16."""
    arguments = _merge_kernel.arg_names
    return [
        CompileCase(
            name="merge bf16 D128",
            kernel=_merge_kernel,
            signature={
                "out_ptr": "*bf16",
                "partial_out_ptr": "*fp32",
                "partial_stats_ptr": "*fp32",
                "sequence_items_ptr": "*i32",
                **dict.fromkeys(arguments[4:7], "i32"),
            },
            constants=_constants(128, ROWS),
            num_warps=4,
            num_stages=3,
            aligned=tuple(arguments[:4]),
        )
    ]
