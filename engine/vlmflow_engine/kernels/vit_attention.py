"""Attention of vision towers: on a GPU our kernel or one of torch's, whichever is the faster."""

from bisect import bisect_left
from collections.abc import Sequence
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlmflow_engine.kernels.dispatch import architecture, runs_triton


class Backend(Enum):
    """Who multiplies. torch's are called once for each run of equal segments."""

    TRITON = "triton"  # kernels/varlen_attention.py: one launch, whatever the lengths
    CUDNN = "cudnn"
    FLASH = "flash"


# Tokens of the longest segment; a longer one counts as the last.
BUCKETS = (64, 256, 1024, 4096, 16384)

# Measured on a GPU: (head_dim, bucket, whether all images are of one size) -> the fastest.
# This is where results of benchmarks/kernels/vit_attention.py go; what is not here is `default`.
FASTEST: dict[tuple[int, int, bool], Backend] = {}

# Whom torch asks if the first cannot: cuDNN and flash know neither float32 nor odd head dims.
_OTHERS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_ORDERS = {
    Backend.CUDNN: [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, *_OTHERS],
    Backend.FLASH: [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, *_OTHERS],
}


def default(is_one_size: bool, architecture: int) -> Backend:
    """Choose where nothing was measured.

    Images of their own sizes: our kernel, for windows and ragged neighbours would be many calls,
    and cuDNN plans anew, for milliseconds, at every length it has not met. Images of one size:
    cuDNN, which others saw ahead of all else on Hopper; before Hopper flash.
    """
    if not is_one_size:
        return Backend.TRITON
    return Backend.CUDNN if architecture >= 90 else Backend.FLASH


def fastest(head_dim: int, max_length: int, *, is_one_size: bool, architecture: int) -> Backend:
    """Look up who computes segments of at most so many tokens."""
    bucket = BUCKETS[min(bisect_left(BUCKETS, max_length), len(BUCKETS) - 1)]
    measured = FASTEST.get((head_dim, bucket, is_one_size))
    return measured or default(is_one_size, architecture)


def vit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    runs: Sequence[tuple[int, int]],
    starts: Tensor,
    *,
    is_one_size: bool,
) -> Tensor:
    """Attend each segment's tokens to all of the same segment, on a GPU.

    q, k, v      [tokens, num_heads, head_dim], a token's heads one after the other
    runs         (segments, tokens of each) of neighbours of equal length
    starts       [segments + 1] int32 on the device: the same, for kernels
    is_one_size  whether lengths come again in every pass
    returns      [tokens, num_heads, head_dim], contiguous
    """
    max_length = max((length for _, length in runs), default=0)
    backend = fastest(
        q.shape[-1], max_length, is_one_size=is_one_size, architecture=architecture(q)
    )
    if backend is Backend.TRITON and runs_triton(q):
        from vlmflow_engine.kernels.varlen_attention import varlen_attention

        return varlen_attention(q, k, v, starts, max_length)
    with sdpa_kernel(_ORDERS[backend], set_priority=True):
        return torch_attention(q, k, v, runs)


def torch_attention(q: Tensor, k: Tensor, v: Tensor, runs: Sequence[tuple[int, int]]) -> Tensor:
    """The same by torch's own choice of kernel, on any device: what a CPU runs."""
    if len(runs) == 1:
        return _attend_run(q, k, v, *runs[0])
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    start = 0
    for count, length in runs:
        rows = slice(start, start + count * length)
        out[rows] = _attend_run(q[rows], k[rows], v[rows], count, length)
        start = rows.stop
    return out


def _attend_run(q: Tensor, k: Tensor, v: Tensor, count: int, length: int) -> Tensor:
    # [segments, num_heads, tokens, head_dim]
    q, k, v = (x.view(count, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v)
    return attended.transpose(1, 2).flatten(0, 1)
