"""Attention of vision towers: our kernel beside torch's, by shape of tower and size of image."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.kernels.problem import (
    KernelCase,
    Problem,
    Scale,
    generator_of,
    random,
    tolerance_of,
)


def cases(scale: Scale) -> list[KernelCase]:
    if scale is Scale.BENCHMARK:
        return [
            _case("Qwen2.5-VL, windows of 64", [64] * 512, 16, 80),
            _case("Qwen2.5-VL, 8 images of 1024", [1024] * 8, 16, 80),
            _case("Qwen2.5-VL, 4 images of 5476", [5476] * 4, 16, 80),
            _case("Qwen2.5-VL, mixed sizes", [5476, 1024, 3000, 256, 4096, 600], 16, 80),
            _case("InternViT, 16 tiles of 1025", [1025] * 16, 16, 64),
            _case("CLIP-L/336, 40 tiles of 577", [577] * 40, 16, 64),
            _case("SigLIP, 16 images of 729", [729] * 16, 16, 72),
        ]
    lengths = [1, 17, 0, 5]
    sizes: Sequence[int] = (80,)
    if scale is Scale.CHECK:
        lengths, sizes = [*lengths, 63, 64, 65, 131, 1025, 5476, 2], (64, 72, 80, 88, 128)
    return [
        _case(f"{str(dtype).removeprefix('torch.')}, D {head_dim}", lengths, 2, head_dim, dtype)
        for head_dim in sizes
        for dtype in (torch.float32, torch.bfloat16)
    ] + [_case("windows", [64, 48, 16] if scale is Scale.CHECK else [16, 8], 2, 80)]


def _case(
    name: str,
    lengths: Sequence[int],
    num_heads: int,
    head_dim: int,
    dtype: torch.dtype = torch.bfloat16,
) -> KernelCase:
    def make(device: torch.device, seed: int) -> Problem:
        from vlmflow_engine.kernels.varlen_attention import varlen_attention

        generator = generator_of(device, seed)
        shape = (sum(lengths), 3 * num_heads, head_dim)
        q, k, v = torch.split(random(shape, dtype, device, generator), num_heads, dim=1)
        q, k, v = _merged(q, k, v)
        starts = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
        pairs = sum(length**2 for length in lengths)
        is_even = len(set(lengths)) == 1
        return Problem(
            run=lambda: varlen_attention(q, k, v, starts, max(lengths)),
            reference=lambda: _reference(q, k, v, lengths),
            tolerance=tolerance_of(dtype),
            num_bytes=4.0 * q.numel() * q.element_size(),
            flops=4.0 * pairs * num_heads * head_dim,
            peers=_peers(q, k, v, lengths) if q.is_cuda and (is_even or len(lengths) < 10) else {},
        )

    return KernelCase(name=name, make=make)


def _merged(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As a tower's merged projection leaves them: a token's heads follow one another."""
    num_tokens, num_heads, head_dim = q.shape
    qkv = torch.cat([x.reshape(num_tokens, -1) for x in (q, k, v)], dim=1)
    parts = torch.split(qkv, num_heads * head_dim, dim=1)
    q, k, v = (part.view(num_tokens, num_heads, head_dim) for part in parts)
    return q, k, v


def _by_segment(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
) -> Tensor:
    """Segments of one length in one call, others one by one; [tokens, num_heads, head_dim]."""
    if len(set(lengths)) == 1:
        batched = (
            x.view(len(lengths), lengths[0], *x.shape[1:]).transpose(1, 2) for x in (q, k, v)
        )
        return attend(*batched).transpose(1, 2).flatten(0, 1)
    parts, start = [], 0
    for length in lengths:
        own = (x[start : start + length].transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        parts.append(attend(*own).squeeze(0).transpose(0, 1))
        start += length
    return torch.cat(parts)


def _reference(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.double() for x in (q, k, v))
        scores = q.shape[-1] ** -0.5 * q @ k.transpose(-1, -2)
        return torch.softmax(scores, dim=-1) @ v

    # One by one: a batch of scores in float64 would not fit.
    parts = zip(*(torch.split(x, list(lengths)) for x in (q, k, v)), strict=True)
    return torch.cat([_by_segment(attend, a, b, c, [len(a)]) for a, b, c in parts])


def _peers(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> dict[str, Callable[[], Any]]:
    def by(backend: SDPBackend) -> Callable[[], Any]:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v)

        def call() -> Tensor:
            with sdpa_kernel(backend):
                return _by_segment(attend, q, k, v, lengths)

        return call

    return {
        "SDPA cuDNN": by(SDPBackend.CUDNN_ATTENTION),
        "SDPA flash": by(SDPBackend.FLASH_ATTENTION),
    }
