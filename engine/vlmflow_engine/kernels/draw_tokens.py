"""The draw: of a row's kept tokens the one with the largest logit / temperature + noise.

    kernels/kept_tokens.py says which are kept; min-p, which asks each token by itself, is looked at
    here. A tile none of whose tokens is kept is not read. The best of a row's tiles is found by
    atomic maxima of whole numbers, whose order does not matter:

        sort_key(sum) * 2**32 + (2**31 - 1 - id)          of equal sums the lowest id

A second kernel reads the ids out of these and, where a repetition penalty wants to know, notes them
as seen. No number goes to the host.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmflow_engine.kernels.compile_case import CompileCase
from vlmflow_engine.kernels.gumbel_noise import gumbel_tile
from vlmflow_engine.kernels.kept_tokens import GROUP, KeptTokens
from vlmflow_engine.kernels.row_search import heated
from vlmflow_engine.kernels.sampling_table import SamplingTable
from vlmflow_engine.kernels.sort_key import LOWEST, NOT_A_NUMBER, from_sort_key, sort_key

_TILE = 2048  # tokens of a program
_ROWS = 128  # rows of a program that finishes
_WARPS = 4
_NOBODY, _LOWEST = tl.constexpr(NOT_A_NUMBER), tl.constexpr(LOWEST)
_LAST = tl.constexpr(0x7FFFFFFF)
_NONE = tl.constexpr(-(2**63))  # below what any token has


@triton.jit
def _draw_kernel(
    # pointers
    logits_ptr,
    rows_ptr,
    positions_ptr,
    seed_ptr,
    temperature_ptr,
    min_p_ptr,
    keys_ptr,
    ids_ptr,
    largest_ptr,
    maxima_ptr,
    best_ptr,
    # sizes and strides
    vocab_size,
    num_groups,
    logits_stride,
    option_stride,
    # constants
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    last_key = tl.load(keys_ptr + row)
    if last_key == _NOBODY:
        return
    groups = tl.program_id(1) * (TILE // GROUP) + tl.arange(0, TILE // GROUP)
    maxima = tl.load(
        maxima_ptr + row * num_groups + groups, mask=groups < num_groups, other=_LOWEST
    )
    if tl.max(maxima) < last_key:
        return
    table_row = tl.load(rows_ptr + row).to(tl.int64)
    temperature = tl.load(temperature_ptr + table_row * option_stride)
    min_p = tl.load(min_p_ptr + table_row * option_stride)
    seed = tl.load(seed_ptr + table_row * (option_stride // 2))
    largest = from_sort_key(tl.load(largest_ptr + row))
    first = tl.program_id(1) * TILE
    tokens = first + tl.arange(0, TILE)
    is_token = tokens < vocab_size
    x = tl.load(logits_ptr + row * logits_stride + tokens, mask=is_token, other=float("-inf"))
    keys = sort_key(x)
    last_id = tl.load(ids_ptr + row)
    is_kept = is_token & ((keys > last_key) | ((keys == last_key) & (tokens <= last_id)))
    values = heated(x, largest, temperature)
    is_kept &= tl.exp(values) >= min_p
    sums = values + gumbel_tile(seed, tl.load(positions_ptr + row), first, TILE)
    packed = (sort_key(sums).to(tl.int64) << 32) + (_LAST - tokens)
    best = tl.max(tl.where(is_kept, packed, _NONE))
    if best > _NONE:
        tl.atomic_max(best_ptr + row, best)


# One kernel for any number of rows, see rms_norm.py.
@triton.jit(do_not_specialize=["num_rows"])
def _finish_kernel(
    # pointers
    best_ptr,
    rows_ptr,
    penalty_ptr,
    seen_ptr,
    token_ids_ptr,
    # sizes and strides
    num_rows,
    option_stride,
    mask_stride,
    # constants
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = rows < num_rows
    best = tl.load(best_ptr + rows, mask=is_row, other=_NONE)
    has_token = best > _NONE
    ids = tl.where(has_token, _LAST - (best & _LAST), -1)
    tl.store(token_ids_ptr + rows, ids, mask=is_row)
    table_rows = tl.load(rows_ptr + rows, mask=is_row, other=-1).to(tl.int64)
    has_token &= table_rows >= 0
    penalty = tl.load(penalty_ptr + table_rows * option_stride, mask=has_token, other=1.0)
    is_noted = has_token & (penalty != 1)
    word_ptr = seen_ptr + table_rows * mask_stride + ids // 32
    words = tl.load(word_ptr, mask=is_noted, other=0)
    bits = tl.full([ROWS], 1, tl.int32) << (ids % 32).to(tl.int32)
    tl.store(word_ptr, words | bits, mask=is_noted)


def draw_tokens(
    scores: Tensor, rows: Tensor, positions: Tensor, kept: KeptTokens, table: SamplingTable
) -> Tensor:
    """Return each row's next token [num_rows] int64, and note it as seen.

    scores     [num_rows, vocab_size] float32
    rows       [num_rows] int32, all different but for -1: each one's row of the table
    positions  [num_rows] int32: where the token stands
    -1: no token can be chosen, for a NaN is among the scores or all are -inf; or a padded row.
    """
    num_rows, vocab_size = scores.shape
    assert scores.dtype == torch.float32 and scores.stride(1) == 1
    assert rows.dtype == positions.dtype == torch.int32
    best = torch.full((num_rows,), -(2**63), dtype=torch.int64, device=scores.device)
    token_ids = torch.empty_like(best)
    if num_rows == 0:
        return token_ids
    _draw_kernel[(num_rows, triton.cdiv(vocab_size, _TILE))](
        logits_ptr=scores,
        rows_ptr=rows,
        positions_ptr=positions,
        seed_ptr=table.seed,
        temperature_ptr=table.temperature,
        min_p_ptr=table.min_p,
        keys_ptr=kept.keys,
        ids_ptr=kept.ids,
        largest_ptr=kept.largest,
        maxima_ptr=kept.maxima,
        best_ptr=best,
        vocab_size=vocab_size,
        num_groups=kept.maxima.shape[1],
        logits_stride=scores.stride(0),
        option_stride=table.option_stride,
        GROUP=GROUP,
        TILE=_TILE,
        num_warps=_WARPS,
        enable_fp_fusion=False,
    )
    _finish_kernel[(triton.cdiv(num_rows, _ROWS),)](
        best_ptr=best,
        rows_ptr=rows,
        penalty_ptr=table.penalty,
        seen_ptr=table.seen,
        token_ids_ptr=token_ids,
        num_rows=num_rows,
        option_stride=table.option_stride,
        mask_stride=table.seen.stride(0),
        ROWS=_ROWS,
        num_warps=_WARPS,
    )
    return token_ids


def draw_tokens_reference(
    scores: Tensor, rows: Tensor, noise: Tensor, is_kept: Tensor, table: SamplingTable
) -> Tensor:
    """The same of given noise [num_rows, vocab_size] and kept tokens; nothing is noted."""
    token_ids = torch.full((len(rows),), -1, device=scores.device)
    for index, row in enumerate(rows.tolist()):
        if row >= 0 and is_kept[index].any():
            x = scores[index]
            values = torch.where(x == x.amax(), 0.0, (x - x.amax()) / table.temperature[row])
            kept = is_kept[index] & (values.exp() >= table.min_p[row])
            sums = (values + noise[index]).masked_fill(~kept, -torch.inf)
            token_ids[index] = (sums == sums.amax()).nonzero()[0, 0]
    return token_ids


def compile_cases() -> list[CompileCase]:
    numbers = {name: "i32" for name in ("option_stride", "vocab_size", "num_groups")}
    whole = {f"{name}_ptr": "*i32" for name in ("rows", "positions", "keys", "ids", "largest")}
    whole |= {"logits_ptr": "*fp32", "maxima_ptr": "*i32", "best_ptr": "*i64"}
    options = {"seed_ptr": "*i64", "temperature_ptr": "*fp32", "min_p_ptr": "*fp32"}
    finish = {"best_ptr": "*i64", "rows_ptr": "*i32", "seen_ptr": "*i32", "token_ids_ptr": "*i64"}
    strides = {"num_rows": "i32", "option_stride": "i32", "mask_stride": "i32"}
    return [
        CompileCase(
            name="draw",
            kernel=_draw_kernel,
            signature=whole | options | numbers | {"logits_stride": "i32"},
            constants={"GROUP": GROUP, "TILE": _TILE},
            num_warps=_WARPS,
            num_stages=3,
            aligned=(*whole, "logits_stride"),
            allowed_spills="two registers on sm_100, where ptxas stops at 128 by itself",
        ),
        CompileCase(
            name="note the drawn",
            kernel=_finish_kernel,
            signature=finish | {"penalty_ptr": "*fp32"} | strides,
            constants={"ROWS": _ROWS},
            num_warps=_WARPS,
            num_stages=3,
            aligned=tuple(finish),
        ),
    ]
