"""The likeliest tokens of a row and how likely they are; no log_softmax of the row is made.

The tokens are found as top-k finds them (kept_tokens.py). A program a row then adds up how likely
each token is beside the likeliest, whose logarithm every value lacks, and collects the found ones,
which are sorted afterwards.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmflow_engine.kernels.compile_case import CompileCase
from vlmflow_engine.kernels.kept_tokens import kept_tokens
from vlmflow_engine.kernels.sort_key import NOT_A_NUMBER, from_sort_key, sort_key

_TILE = 4096  # tokens of a step
_WARPS = 8
_NOBODY = tl.constexpr(NOT_A_NUMBER)


@triton.jit
def _collect_kernel(
    # pointers
    logits_ptr,
    keys_ptr,
    ids_ptr,
    largest_ptr,
    found_ptr,
    normaliser_ptr,
    # sizes and strides
    vocab_size,
    count,
    logits_stride,
    # constants
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    last_key = tl.load(keys_ptr + row)
    if last_key == _NOBODY:
        tl.store(normaliser_ptr + row, float("nan"))
        return
    last_id = tl.load(ids_ptr + row)
    largest = from_sort_key(tl.load(largest_ptr + row))
    total = tl.full([], 0.0, tl.float32)
    num_found = tl.full([], 0, tl.int32)
    for start in range(0, vocab_size, TILE):
        tokens = start + tl.arange(0, TILE)
        is_token = tokens < vocab_size
        x = tl.load(logits_ptr + row * logits_stride + tokens, mask=is_token, other=float("-inf"))
        total += tl.sum(tl.exp(x - largest))
        keys = sort_key(x)
        is_found = is_token & ((keys > last_key) | ((keys == last_key) & (tokens <= last_id)))
        places = num_found + tl.cumsum(is_found.to(tl.int32), 0) - 1
        packed = (keys.to(tl.int64) << 32) + (0x7FFFFFFF - tokens)
        tl.store(found_ptr + row * count + places, packed, mask=is_found & (places < count))
        num_found += tl.sum(is_found.to(tl.int32))
    tl.store(normaliser_ptr + row, largest + tl.log(total))


def top_logprobs(
    logits: Tensor, token_ids: Tensor, count: int, *, is_raw: bool = False
) -> tuple[Tensor, Tensor]:
    """Return ids int64 and values float32 [num_rows, 1 + count]: the chosen token, the likeliest.

    logits     [num_rows, vocab_size] float32
    token_ids  [num_rows] int64; where it is -1, the row's numbers mean nothing
    count      of likeliest tokens, likeliest first, of equals the lower id
    is_raw     values are logits, not their log_softmax
    """
    num_rows, vocab_size = logits.shape
    assert logits.dtype == torch.float32 and logits.stride(1) == 1
    assert token_ids.shape == (num_rows,) and token_ids.dtype == torch.int64
    count = min(count, vocab_size)
    ids = token_ids.clamp(min=0)[:, None]
    if num_rows == 0:
        return ids.expand(0, 1 + count), logits.new_empty(0, 1 + count)
    device = logits.device
    ones = torch.ones(num_rows, dtype=torch.float32, device=device)
    kept = kept_tokens(
        logits,
        torch.arange(num_rows, dtype=torch.int32, device=device),
        temperature=ones,
        top_k=torch.full((num_rows,), max(count, 1), dtype=torch.int32, device=device),
        top_p=ones,
    )
    # Where a row has a NaN nothing is found; any token stands there.
    found = torch.zeros(num_rows, max(count, 1), dtype=torch.int64, device=device)
    normalisers = torch.empty_like(ones)
    _collect_kernel[(num_rows,)](
        logits_ptr=logits,
        keys_ptr=kept.keys,
        ids_ptr=kept.ids,
        largest_ptr=kept.largest,
        found_ptr=found,
        normaliser_ptr=normalisers,
        vocab_size=vocab_size,
        count=found.shape[1],
        logits_stride=logits.stride(0),
        TILE=_TILE,
        num_warps=_WARPS,
    )
    if count > 0:
        found = found.sort(dim=-1, descending=True).values
        likeliest = (0x7FFFFFFF - (found & 0x7FFFFFFF)).clamp(max=vocab_size - 1)
        ids = torch.cat([ids, likeliest], dim=-1)
    values = logits.gather(1, ids)
    return ids, values if is_raw else values - normalisers[:, None]


def top_logprobs_reference(
    logits: Tensor, token_ids: Tensor, count: int, *, is_raw: bool = False
) -> tuple[Tensor, Tensor]:
    """The same by sorting, and by log_softmax."""
    likeliest = logits.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    ids = torch.cat([token_ids[:, None], likeliest], dim=-1)
    return ids, (logits if is_raw else logits.log_softmax(dim=-1)).gather(1, ids)


def compile_cases() -> list[CompileCase]:
    pointers = {f"{name}_ptr": "*i32" for name in ("keys", "ids", "largest")}
    pointers |= {"logits_ptr": "*fp32", "found_ptr": "*i64", "normaliser_ptr": "*fp32"}
    return [
        CompileCase(
            name="collect logprobs",
            kernel=_collect_kernel,
            signature=pointers | {n: "i32" for n in ("vocab_size", "count", "logits_stride")},
            constants={"TILE": _TILE},
            num_warps=_WARPS,
            num_stages=3,
            aligned=(*pointers, "logits_stride"),
        )
    ]
