"""Grammar, repetition penalty and forbidden tokens, applied to a step's logits.

Sets of tokens are bits: token t is bit t % 32 of word t // 32, [rows, ceil(vocab_size / 32)] int32,
which is how the bytes of a grammar's mask lie in memory. A row of the table is a sequence's for as
long as it lives; row -1 is a padded row of the step, whose scores are not written.

A sequence that must go on may not stop, unless stopping is all that is left. A tile that wants to
forbid its stop tokens looks for one other token in the row; it mostly finds it in its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmflow_engine.kernels.compile_case import CompileCase
from vlmflow_engine.kernels.sampling_table import SamplingTable

_TILE = 2048  # tokens of a program
_WARPS = 8


@triton.jit
def _is_in(mask_ptr, row, tokens, stride, is_token):
    words = tl.load(mask_ptr + row * stride + tokens // 32, mask=is_token, other=0)
    return ((words >> (tokens % 32)) & 1) != 0


@triton.jit
def _edited(
    logits_ptr,
    allowed_ptr,
    seen_ptr,
    forbidden_ptr,
    row,
    allowed_row,
    table_row,
    tokens,
    penalty,
    has_forbidden,
    vocab_size,
    logits_stride,
    mask_stride,
    HAS_ALLOWED: tl.constexpr,
):
    is_token = tokens < vocab_size
    x = tl.load(logits_ptr + row * logits_stride + tokens, mask=is_token, other=float("-inf"))
    if HAS_ALLOWED:  # noqa: SIM102 - known when this is compiled
        if allowed_row >= 0:
            is_allowed = _is_in(allowed_ptr, allowed_row, tokens, mask_stride, is_token)
            x = tl.where(is_allowed, x, float("-inf"))
    if penalty != 1:
        is_seen = _is_in(seen_ptr, table_row, tokens, mask_stride, is_token)
        penalties = tl.zeros_like(x) + penalty
        x = tl.where(is_seen, tl.where(x < 0, x * penalty, tl.div_rn(x, penalties)), x)
    if has_forbidden != 0:
        is_forbidden = _is_in(forbidden_ptr, table_row, tokens, mask_stride, is_token)
        x = tl.where(is_forbidden, float("-inf"), x)
    return x


@triton.jit
def _edit_logits_kernel(
    # pointers
    logits_ptr,
    scores_ptr,
    rows_ptr,
    positions_ptr,
    allowed_ptr,
    allowed_rows_ptr,
    penalty_ptr,
    has_forbidden_ptr,
    may_stop_at_ptr,
    seen_ptr,
    forbidden_ptr,
    stops_ptr,
    # sizes
    vocab_size,
    num_tiles,
    # strides
    logits_stride,
    scores_stride,
    option_stride,
    mask_stride,
    # constants
    HAS_ALLOWED: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    table_row = tl.load(rows_ptr + row).to(tl.int64)
    if table_row < 0:
        return
    allowed_row = tl.full([], -1, tl.int64)
    if HAS_ALLOWED:
        allowed_row = tl.load(allowed_rows_ptr + row).to(tl.int64)
    penalty = tl.load(penalty_ptr + table_row * option_stride)
    has_forbidden = tl.load(has_forbidden_ptr + table_row * option_stride)
    must_go_on = tl.load(positions_ptr + row) < tl.load(may_stop_at_ptr + table_row * option_stride)
    tokens = tl.program_id(1) * TILE + tl.arange(0, TILE)
    x = _edited(
        logits_ptr, allowed_ptr, seen_ptr, forbidden_ptr, row, allowed_row, table_row, tokens,
        penalty, has_forbidden, vocab_size, logits_stride, mask_stride, HAS_ALLOWED,
    )  # fmt: skip
    if must_go_on:
        is_stop = _is_in(stops_ptr, table_row, tokens, mask_stride, tokens < vocab_size)
        is_left = tl.max((~is_stop & (x > float("-inf"))).to(tl.int32))
        tile = 0
        while (is_left == 0) & (tile < num_tiles):
            others = tile * TILE + tl.arange(0, TILE)
            y = _edited(
                logits_ptr, allowed_ptr, seen_ptr, forbidden_ptr, row, allowed_row, table_row,
                others, penalty, has_forbidden, vocab_size, logits_stride, mask_stride, HAS_ALLOWED,
            )  # fmt: skip
            stops = _is_in(stops_ptr, table_row, others, mask_stride, others < vocab_size)
            is_left = tl.max((~stops & (y > float("-inf"))).to(tl.int32))
            tile += 1
        if is_left != 0:
            x = tl.where(is_stop, float("-inf"), x)
    tl.store(scores_ptr + row * scores_stride + tokens, x, mask=tokens < vocab_size)


def edit_logits(
    logits: Tensor,
    rows: Tensor,
    positions: Tensor,
    table: SamplingTable,
    *,
    allowed: Tensor | None = None,
    allowed_rows: Tensor | None = None,
) -> Tensor:
    """Return the scores [num_rows, vocab_size] float32 that tokens are chosen by.

    logits        [num_rows, vocab_size] float32; left as they are
    rows          [num_rows] int32: each one's row of the table; -1: padded
    positions     [num_rows] int32: where the next token stands
    allowed       sets of tokens that grammars allow, in words
    allowed_rows  [num_rows] int32: each one's row of `allowed`; -1: it has no grammar
    """
    num_rows, vocab_size = logits.shape
    assert logits.dtype == torch.float32 and logits.stride(1) == 1
    assert rows.dtype == positions.dtype == torch.int32
    assert (allowed is None) == (allowed_rows is None)
    mask_stride = table.seen.stride(0)
    if allowed is not None:
        assert allowed.dtype == torch.int32 and allowed.stride(0) == mask_stride
    scores = torch.empty_like(logits)
    num_tiles = triton.cdiv(vocab_size, _TILE)
    if num_rows == 0:
        return scores
    _edit_logits_kernel[(num_rows, num_tiles)](
        logits_ptr=logits,
        scores_ptr=scores,
        rows_ptr=rows,
        positions_ptr=positions,
        allowed_ptr=allowed,
        allowed_rows_ptr=allowed_rows,
        penalty_ptr=table.penalty,
        has_forbidden_ptr=table.has_forbidden,
        may_stop_at_ptr=table.may_stop_at,
        seen_ptr=table.seen,
        forbidden_ptr=table.forbidden,
        stops_ptr=table.stops,
        vocab_size=vocab_size,
        num_tiles=num_tiles,
        logits_stride=logits.stride(0),
        scores_stride=scores.stride(0),
        option_stride=table.option_stride,
        mask_stride=mask_stride,
        HAS_ALLOWED=allowed is not None,
        TILE=_TILE,
        num_warps=_WARPS,
    )
    return scores


def edit_logits_reference(
    logits: Tensor,
    rows: Tensor,
    positions: Tensor,
    table: SamplingTable,
    *,
    allowed: Tensor | None = None,
    allowed_rows: Tensor | None = None,
) -> Tensor:
    """The same, row by row; padded rows are left as they are."""
    scores = logits.clone()
    for index, row in enumerate(rows.tolist()):
        if row < 0:
            continue
        x = scores[index]
        if allowed is not None and allowed_rows is not None and allowed_rows[index] >= 0:
            x[~_unpacked(allowed[allowed_rows[index]], len(x))] = -torch.inf
        penalty = table.penalty[row]
        seen = _unpacked(table.seen[row], len(x))
        x.copy_(torch.where(seen, torch.where(x < 0, x * penalty, x / penalty), x))
        if table.has_forbidden[row]:
            x[_unpacked(table.forbidden[row], len(x))] = -torch.inf
        if positions[index] < table.may_stop_at[row]:
            without = x.masked_fill(_unpacked(table.stops[row], len(x)), -torch.inf)
            if without.amax() > -torch.inf:
                x.copy_(without)
    return scores


def _unpacked(words: Tensor, vocab_size: int) -> Tensor:
    bits = (words[:, None] >> torch.arange(32, device=words.device)) & 1
    return bits.flatten()[:vocab_size].bool()


def compile_cases() -> list[CompileCase]:
    pointers = {"logits_ptr": "*fp32", "scores_ptr": "*fp32", "penalty_ptr": "*fp32"}
    names = "rows positions has_forbidden may_stop_at seen forbidden stops"
    signature = pointers | {f"{name}_ptr": "*i32" for name in names.split()}
    numbers = "vocab_size num_tiles logits_stride scores_stride option_stride mask_stride"
    signature |= dict.fromkeys(numbers.split(), "i32")
    aligned = ("logits_ptr", "scores_ptr", "rows_ptr", "positions_ptr", "seen_ptr")
    grammar = {"allowed_ptr": "*i32", "allowed_rows_ptr": "*i32"}
    without = {"allowed_ptr": None, "allowed_rows_ptr": None}
    return [
        CompileCase(
            name=name,
            kernel=_edit_logits_kernel,
            signature=signature | types,
            constants={"HAS_ALLOWED": bool(types), "TILE": _TILE} | constants,
            num_warps=_WARPS,
            num_stages=1,
            aligned=(*aligned, "forbidden_ptr", "stops_ptr", "logits_stride", "scores_stride"),
        )
        for name, types, constants in (
            ("edit logits", {}, without),
            ("edit logits with grammars", grammar, {}),
        )
    ]
