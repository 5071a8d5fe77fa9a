"""Decode attention over the paged cache, beside torch's attention over what was gathered before.

The peers read keys and values that lie in one dense tensor already: gathering them is not counted.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.kernels.paged_inputs import PagedInputs, attention_float64, paged_inputs
from benchmarks.kernels.problem import KernelCase, Problem, Scale, tolerance_of


def cases(scale: Scale) -> list[KernelCase]:
    if scale is Scale.BENCHMARK:
        found = [
            _case(f"GQA {group}, {batch} x {context}", [context] * batch, group=group)
            for group, kv_heads in ((7, 4), (8, 8))
            for batch, context in ((8, 1536), (64, 1536), (256, 1536), (64, 4096))
        ]
        found += [
            _case(f"{name}, GQA 8, 64 x 8192", [8192] * 64, group=8, kv_format=name)
            for name in ("bf16", "int8", "fp8", "int4")
        ]
        return found
    page = 64 if scale is Scale.CHECK else 16
    lengths = [0, 1, page - 1, page, page + 1, 0]
    if scale is Scale.CHECK:
        lengths += [131, 1000, 4097, 9000]
    formats = ("bf16", "int8", "int4", "fp8") if scale is Scale.CHECK else ("bf16", "int8")
    found = [
        _case(f"{name}, lengths {max(lengths)} and less", lengths, kv_format=name, block_size=page)
        for name in formats
    ]
    if scale is Scale.CHECK:
        found += [
            _case(f"float32, GQA {group}, D {head_dim}", lengths, group, 2, head_dim, "bf16", page,
                  torch.float32)
            for group, head_dim in ((1, 64), (3, 80), (7, 96), (8, 128), (4, 256))
        ]  # fmt: skip
        found.append(_case("300 sequences", [7 * i % 900 for i in range(300)]))
    return found


def _case(
    name: str,
    lengths: Sequence[int],
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
            context_lens=lengths,
            num_new_tokens=[min(length, 1) for length in lengths],
            num_heads=group * num_kv_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            block_size=block_size,
            dtype=dtype,
            kv_format=kv_format,
        )
        return _problem(inputs)

    return KernelCase(name=name, make=make)


def _problem(inputs: PagedInputs) -> Problem:
    from vlmflow_engine.kernels.paged_decode import paged_decode

    q, out = inputs.q, torch.empty_like(inputs.q)
    return Problem(
        run=lambda: paged_decode(q, inputs.cache, inputs.metadata, scale=inputs.scale),
        reference=lambda: attention_float64(inputs),
        tolerance=tolerance_of(q.dtype),
        num_bytes=inputs.kv_bytes + q.nbytes + out.nbytes,
        flops=4.0 * q.shape[1] * q.shape[2] * sum(inputs.context_lens),
        peers=_peers(inputs) if q.is_cuda and min(inputs.context_lens) > 0 else {},
    )


def _peers(inputs: PagedInputs) -> dict[str, Callable[[], Any]]:
    keys, values = inputs.gathered(inputs.q.dtype)
    # A KV head's query heads as rows: torch's own GQA repeats keys for some backends.
    queries = inputs.q.view(len(keys), keys.shape[1], -1, keys.shape[-1])

    def dense(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(queries, keys, values)

    peers: dict[str, Callable[[], Any]] = {
        "SDPA flash, gathered": lambda: dense(SDPBackend.FLASH_ATTENTION),
        "SDPA cuDNN, gathered": lambda: dense(SDPBackend.CUDNN_ATTENTION),
    }
    if find_spec("flashinfer") is not None and inputs.cache.key.bits == 0:
        peers["FlashInfer, paged"] = _flashinfer(inputs)
    return peers


def _flashinfer(inputs: PagedInputs) -> Callable[[], Any]:
    rows, q = inputs.cache.key.rows, inputs.q
    counts = [len(ids) for ids in inputs.block_ids]
    starts = torch.tensor([0, *counts], device=q.device).cumsum(0).to(torch.int32)
    last = [1 + (length - 1) % rows.shape[1] for length in inputs.context_lens]
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=q.device)
    wrapper = import_module("flashinfer").BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD")
    wrapper.plan(
        starts,
        torch.cat(inputs.block_ids).to(torch.int32),
        torch.tensor(last, dtype=torch.int32, device=q.device),
        q.shape[1],
        rows.shape[2],
        q.shape[2],
        rows.shape[1],
        q_data_type=q.dtype,
        sm_scale=inputs.scale,
    )
    return lambda: wrapper.run(q, (rows, inputs.cache.value.rows))
