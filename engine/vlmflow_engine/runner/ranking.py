"""The likeliest tokens of a row, in an order that depends on nothing but the row."""

import torch
from torch import Tensor


def likeliest_ids(logits: Tensor, count: int) -> Tensor:
    """The ids of the `count` largest logits, likeliest first; of equals the lower id is first.

    logits  [num_rows, vocab_size] float32
    Returns [num_rows, count] int64.
    """
    # Logits computed in bfloat16 are often equal, and topk may rank equals in any order. So we rank
    # whole numbers that are all different: a logit's bits, read so that they sort as it does, then
    # the id.
    bits = (logits + 0.0).view(torch.int32)  # which makes one zero of two
    sortable = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    last = logits.shape[-1] - 1
    from_behind = torch.arange(last, -1, -1, device=logits.device)
    keys = (sortable.long() << 32) | from_behind
    return last - (keys.topk(count, dim=-1).values & 0xFFFFFFFF)
