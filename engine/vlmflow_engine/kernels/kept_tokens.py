"""Which tokens temperature, top-k and top-p leave, without sorting the vocabulary.

Ranked by logit, of equals the lower id first, every filter keeps a prefix. So a row's kept tokens
are told by the last of them: those with a larger key (sort_key.py), or its key and no higher id.

1. The largest key of each group of 64 neighbours, over the whole chip.
2. A program a row lists the groups that may matter: for top-k those whose largest key is at least
   the k-th largest of these, for there are k tokens that large; for top-p those with a token likely
   enough that all below it weigh less than 1 - top_p.
3. In these groups it looks for the last kept key, by asking for the weight above eight candidates
   at a time. For top-k a token's weight is 1; for top-p its probability in units of 2**-62, whose
   sums do not depend on the order. Which of equal tokens is the last is found by counting them.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmflow_engine.kernels.compile_case import CompileCase
from vlmflow_engine.kernels.dispatch import is_interpreted
from vlmflow_engine.kernels.row_search import (
    EVERY_ID,
    UNIT,
    find_kth_maximum,
    find_last_key,
    find_nth_id,
    heated,
    total_share,
    weights_of,
)
from vlmflow_engine.kernels.sort_key import (
    INFINITY,
    LOWEST,
    NOT_A_NUMBER,
    NOTHING,
    from_sort_key,
    sort_key,
)

GROUP = 64  # tokens whose largest key is kept
# Tokens of a program's step. The interpreter takes as long for one that is not there.
_TILE = 1024 if is_interpreted() else 4096
_MAXIMA = _TILE // 4  # groups of a step over all of them
_NUM_PIVOTS = 8
_SCAN_WARPS, _ROW_WARPS = 8, 16
_INFINITY, _LOWEST, _NOTHING = tl.constexpr(INFINITY), tl.constexpr(LOWEST), tl.constexpr(NOTHING)
_NOBODY = tl.constexpr(NOT_A_NUMBER)  # no key is larger: nothing is kept


@dataclass(frozen=True, slots=True)
class KeptTokens:
    """The last kept token of each row, and what was found out on the way. All int32."""

    keys: Tensor  # [num_rows]; NOT_A_NUMBER: no token can be chosen, or the row is padded
    ids: Tensor  # [num_rows]: the highest kept id among the tokens with that key
    largest: Tensor  # [num_rows]: the largest key
    maxima: Tensor  # [num_rows, num_groups]: that of each group


@triton.jit
def _maxima_kernel(
    logits_ptr,
    rows_ptr,
    maxima_ptr,
    vocab_size,
    num_groups,
    logits_stride,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if tl.load(rows_ptr + row) < 0:
        return
    groups = tl.program_id(1) * (TILE // GROUP) + tl.arange(0, TILE // GROUP)
    tokens = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    x = tl.load(
        logits_ptr + row * logits_stride + tokens, mask=tokens < vocab_size, other=float("-inf")
    )
    largest = tl.max(sort_key(x), axis=1)
    tl.store(maxima_ptr + row * num_groups + groups, largest, mask=groups < num_groups)


@triton.jit
def _last_kept_kernel(
    # pointers
    logits_ptr,
    rows_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    maxima_ptr,
    listed_ptr,
    keys_ptr,
    ids_ptr,
    largest_ptr,
    # sizes and strides
    vocab_size,
    num_groups,
    logits_stride,
    option_stride,
    # constants
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    MAXIMA: tl.constexpr,
    NUM_PIVOTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tl.store(keys_ptr + row, _NOBODY)
    tl.store(ids_ptr + row, -1)
    tl.store(largest_ptr + row, _NOBODY)
    table_row = tl.load(rows_ptr + row).to(tl.int64)
    if table_row < 0:
        return
    logits_ptr += row * logits_stride
    maxima_ptr += row * num_groups
    listed_ptr += row * num_groups
    largest_key = tl.full([], _LOWEST, tl.int32)
    for start in range(0, num_groups, MAXIMA):
        groups = start + tl.arange(0, MAXIMA)
        maxima = tl.load(maxima_ptr + groups, mask=groups < num_groups, other=_LOWEST)
        largest_key = tl.maximum(largest_key, tl.max(maxima))
    if (largest_key <= _NOTHING) | (largest_key > _INFINITY):
        return
    temperature = tl.load(temperature_ptr + table_row * option_stride)
    top_p = tl.load(top_p_ptr + table_row * option_stride)
    top_k = tl.load(top_k_ptr + table_row * option_stride)
    # Of an infinity and others only the infinity can be drawn, and of several the first.
    top_k = tl.where(largest_key == _INFINITY, 1, top_k)
    is_ranked = (top_k > 0) & (top_k < vocab_size)
    is_weighed = (top_p < 1) & (top_k != 1)
    last_key = tl.full([], _LOWEST, tl.int32)
    last_id = tl.full([], EVERY_ID, tl.int32)
    largest = from_sort_key(largest_key)
    high = largest_key.to(tl.int64) + 1
    low = tl.full([], _LOWEST, tl.int64)
    total = tl.full([], 0.0, tl.float32)

    if is_ranked | is_weighed:
        if is_ranked:
            if top_k == 1:
                low = largest_key.to(tl.int64)
            elif top_k <= num_groups:
                low = find_kth_maximum(maxima_ptr, num_groups, top_k, high, MAXIMA, NUM_PIVOTS)
        else:
            sums = tl.full([], 0.0, tl.float64)
            for start in range(0, vocab_size, TILE):
                tokens = start + tl.arange(0, TILE)
                x = tl.load(logits_ptr + tokens, mask=tokens < vocab_size, other=float("-inf"))
                sums += tl.sum(tl.exp(heated(x, largest, temperature))).to(tl.float64)
            total = sums.to(tl.float32)
            # All tokens below this share weigh a quarter of 1 - top_p at most: rounding has room.
            share = (1 - top_p) * total / (4.0 * vocab_size)
            bound = largest + temperature * tl.log(share)
            low = tl.minimum(sort_key(bound), largest_key).to(tl.int64)
        num_listed = tl.full([], 0, tl.int32)
        for start in range(0, num_groups, MAXIMA):
            groups = start + tl.arange(0, MAXIMA)
            maxima = tl.load(maxima_ptr + groups, mask=groups < num_groups, other=_LOWEST)
            is_listed = (groups < num_groups) & (maxima.to(tl.int64) >= low)
            places = num_listed + tl.cumsum(is_listed.to(tl.int32), 0) - 1
            tl.store(listed_ptr + places, groups, mask=is_listed)
            num_listed += tl.sum(is_listed.to(tl.int32))
        tl.debug_barrier()  # other threads read what these have listed

        if is_ranked:
            key, above = find_last_key(
                logits_ptr, listed_ptr, num_listed, vocab_size, low, high,
                top_k.to(tl.int64) - 1, largest, temperature, total, last_key, last_id,
                False, GROUP, TILE, NUM_PIVOTS,
            )  # fmt: skip
            last_key = key.to(tl.int32)
            last_id = find_nth_id(
                logits_ptr, listed_ptr, num_listed, vocab_size, last_key,
                top_k - above.to(tl.int32), GROUP, TILE,
            )  # fmt: skip
        if is_weighed:
            if is_ranked:
                total = total_share(
                    logits_ptr, listed_ptr, num_listed, vocab_size, largest, temperature,
                    last_key, last_id, GROUP, TILE,
                )  # fmt: skip
                low = last_key.to(tl.int64)
            limit = (top_p * UNIT).to(tl.int64)
            key, above = find_last_key(
                logits_ptr, listed_ptr, num_listed, vocab_size, low, high, limit,
                largest, temperature, total, last_key, last_id,
                True, GROUP, TILE, NUM_PIVOTS,
            )  # fmt: skip
            cut_key = key.to(tl.int32)
            cut = from_sort_key(cut_key)
            weight = weights_of(cut, largest, temperature, total)
            # The first of equals is kept, and each after it while those before weigh no more.
            count = tl.where(weight > 0, (limit - above) // tl.maximum(weight, 1) + 1, vocab_size)
            cut_id = find_nth_id(
                logits_ptr, listed_ptr, num_listed, vocab_size, cut_key,
                tl.minimum(count, vocab_size).to(tl.int32), GROUP, TILE,
            )  # fmt: skip
            last_id = tl.where(cut_key == last_key, tl.minimum(cut_id, last_id), cut_id)
            last_key = cut_key
    tl.store(keys_ptr + row, last_key)
    tl.store(ids_ptr + row, last_id)
    tl.store(largest_ptr + row, largest_key)


def kept_tokens(
    logits: Tensor, rows: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor
) -> KeptTokens:
    """Return the last token that each row keeps.

    logits  [num_rows, vocab_size] float32
    rows    [num_rows] int32: each one's row of the options; -1: padded, nothing is kept
    temperature float32 above or at 0, top_k int32, top_p float32: columns of one stride
    """
    num_rows, vocab_size = logits.shape
    assert logits.dtype == torch.float32 and logits.stride(1) == 1 and rows.dtype == torch.int32
    assert temperature.dtype == top_p.dtype == torch.float32 and top_k.dtype == torch.int32
    assert temperature.stride() == top_k.stride() == top_p.stride()
    num_groups = triton.cdiv(vocab_size, GROUP)
    maxima, listed = logits.new_empty(2, num_rows, num_groups, dtype=torch.int32)
    keys, ids, largest = logits.new_empty(3, num_rows, dtype=torch.int32)
    if num_rows > 0:
        _maxima_kernel[(num_rows, triton.cdiv(vocab_size, _TILE))](
            logits_ptr=logits,
            rows_ptr=rows,
            maxima_ptr=maxima,
            vocab_size=vocab_size,
            num_groups=num_groups,
            logits_stride=logits.stride(0),
            GROUP=GROUP,
            TILE=_TILE,
            num_warps=_SCAN_WARPS,
        )
        _last_kept_kernel[(num_rows,)](
            logits_ptr=logits,
            rows_ptr=rows,
            temperature_ptr=temperature,
            top_k_ptr=top_k,
            top_p_ptr=top_p,
            maxima_ptr=maxima,
            listed_ptr=listed,
            keys_ptr=keys,
            ids_ptr=ids,
            largest_ptr=largest,
            vocab_size=vocab_size,
            num_groups=num_groups,
            logits_stride=logits.stride(0),
            option_stride=temperature.stride(0),
            GROUP=GROUP,
            TILE=_TILE,
            MAXIMA=_MAXIMA,
            NUM_PIVOTS=_NUM_PIVOTS,
            num_warps=_ROW_WARPS,
        )
    return KeptTokens(keys, ids, largest, maxima)


def kept_tokens_reference(
    logits: Tensor, rows: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor
) -> Tensor:
    """Whether each token is kept [num_rows, vocab_size], by sorting each row."""
    is_kept = torch.zeros_like(logits, dtype=torch.bool)
    for index, row in enumerate(rows.tolist()):
        values, order = logits[index].sort(descending=True, stable=True)
        if row < 0 or not values[0] > -torch.inf:
            continue
        count = int(top_k[row]) if 0 < top_k[row] < len(values) else len(values)
        if values[0] == torch.inf:
            count = 1
        apart = values - values[0]
        apart = torch.where(values == values[0], 0.0, apart / temperature[row])[:count]
        shares = apart.softmax(dim=-1).double()
        before = shares.cumsum(dim=-1) - shares
        kept = before <= top_p[row] if top_p[row] < 1 else torch.ones_like(before, dtype=torch.bool)
        is_kept[index, order[:count][kept]] = True
    return is_kept


def compile_cases() -> list[CompileCase]:
    sizes = {name: "i32" for name in ("vocab_size", "num_groups", "logits_stride")}
    scanned = {"logits_ptr": "*fp32", "rows_ptr": "*i32", "maxima_ptr": "*i32"}
    options = {"temperature_ptr": "*fp32", "top_k_ptr": "*i32", "top_p_ptr": "*fp32"}
    found = {f"{name}_ptr": "*i32" for name in ("listed", "keys", "ids", "largest")}
    constants = {"GROUP": GROUP, "TILE": _TILE}
    return [
        CompileCase(
            name="largest of groups",
            kernel=_maxima_kernel,
            signature=scanned | sizes,
            constants=constants,
            num_warps=_SCAN_WARPS,
            num_stages=3,
            aligned=(*scanned, "logits_stride"),
        ),
        CompileCase(
            name="last kept token",
            kernel=_last_kept_kernel,
            signature=scanned | options | found | sizes | {"option_stride": "i32"},
            constants=constants | {"MAXIMA": _MAXIMA, "NUM_PIVOTS": _NUM_PIVOTS},
            num_warps=_ROW_WARPS,
            num_stages=3,
            aligned=(*scanned, "logits_stride"),
        ),
    ]
