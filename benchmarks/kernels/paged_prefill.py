"""Attention of prompts and their chunks over the paged cache, beside torch's on dense tensors.

The peers read keys and values that lie in one dense tensor already, and only where every sequence
is computed from its first token: of a chunk behind a cached prefix torch's kernels would want a
mask.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.kernels.paged_inputs import PagedInputs, attention_float64, paged_inputs
from benchmarks.kernels.problem import KernelCase, Problem, Scale, tolerance_of

Chunks = Sequence[tuple[int, int]]  # (new tokens, tokens stored once they are)


def cases(scale: Scale) -> list[KernelCase]:
    if scale is Scale.BENCHMARK:
        return [
            _case("causal 1 x 4096, GQA 7", [(4096, 4096)]),
            _case("causal 4 x 4096, GQA 7", [(4096, 4096)] * 4),
            _case("causal 8 x 1536, GQA 7", [(1536, 1536)] * 8),
            _case("causal 4 x 4096, GQA 1", [(4096, 4096)] * 4, group=1, num_kv_heads=32),
            _case("chunks of 2048 behind 6144, GQA 7", [(2048, 8192)] * 4),
            _case("chunks of 2048 behind 6144, int8", [(2048, 8192)] * 4, kv_format="int8"),
        ]
    if scale is Scale.TOY:
        return [_case("toy", [(1, 5), (3, 3), (5, 18)], 3, 1, 16, "bf16", 16, torch.float32)]
    chunks = [(1, 1), (1, 200), (0, 0), (2, 2), (63, 64), (65, 65), (131, 1000), (1500, 1500)]
    chunks.append((700, 5000))
    found = [_case(f"{name}, mixed", chunks, kv_format=name) for name in ("bf16", "int8", "fp8")]
    return found + [
        _case(f"float32, GQA {group}, D {size}", chunks, group, 2, size, "bf16", 64, torch.float32)
        for group, size in ((1, 64), (3, 80), (8, 96), (4, 128))
    ]


def _case(
    name: str,
    chunks: Chunks,
    group: int = 7,
    num_kv_heads: int = 4,
    head_dim: int = 128,
    kv_format: str = "bf16",
    block_size: int = 64,
    dtype: torch.dtype = torch.bfloat16,
) -> KernelCase:
    def make(device: torch.device, seed: int) -> Problem:
        inputs = paged_inputs(
            device,
            seed,
            context_lens=[context for _, context in chunks],
            num_new_tokens=[count for count, _ in chunks],
            num_heads=group * num_kv_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            block_size=block_size,
            dtype=dtype,
            kv_format=kv_format,
        )
        return _problem(inputs, chunks)

    return KernelCase(name=name, make=make)


def _problem(inputs: PagedInputs, chunks: Chunks) -> Problem:
    from vlmflow_engine.kernels.paged_prefill import paged_prefill

    first = inputs.metadata.num_decodes  # decoding rows come first, one a sequence
    q = inputs.q[first:]
    pairs = sum(count * context - count * (count - 1) / 2 for count, context in chunks)
    is_dense = len(set(chunks)) == 1 and chunks[0][0] == chunks[0][1]
    return Problem(
        run=lambda: paged_prefill(q, inputs.cache, inputs.metadata, scale=inputs.scale),
        reference=lambda: attention_float64(inputs)[first:],
        tolerance=tolerance_of(q.dtype),
        num_bytes=inputs.kv_bytes + 2.0 * q.nbytes,
        flops=4.0 * pairs * q.shape[1] * q.shape[2],
        peers=_peers(inputs) if q.is_cuda and is_dense else {},
    )


def _peers(inputs: PagedInputs) -> dict[str, Callable[[], Any]]:
    keys, values = inputs.gathered(inputs.q.dtype)
    queries = inputs.q.view(len(keys), -1, *inputs.q.shape[1:]).transpose(1, 2).contiguous()

    def dense(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(
                queries, keys, values, is_causal=True, enable_gqa=True
            )

    return {
        "SDPA cuDNN, dense": lambda: dense(SDPBackend.CUDNN_ATTENTION),
        "SDPA flash, dense": lambda: dense(SDPBackend.FLASH_ATTENTION),
    }
