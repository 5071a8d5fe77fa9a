"""Turning queries and keys and storing keys and values, beside the same in torch's operators."""

import torch
from torch import Tensor

from benchmarks.kernels.paged_inputs import KV_FORMATS
from benchmarks.kernels.problem import KernelCase, Problem, Scale, generator_of, random
from vlmflow_engine.runner.kv_cache import allocate_layer


def cases(scale: Scale) -> list[KernelCase]:
    if scale is Scale.BENCHMARK:
        return [
            _case(f"{name}, {tokens} tokens, 28 and 4 heads", tokens, 28, 4, 128, name)
            for tokens in (64, 256, 4096)
            for name in KV_FORMATS
        ]
    sizes = [(9, 3, 1, 64)] if scale is Scale.TOY else [(131, 7, 2, 80), (5000, 28, 4, 128)]
    return [
        _case(f"{name}, {tokens} tokens, D {head_dim}", tokens, heads, kv_heads, head_dim, name)
        for tokens, heads, kv_heads, head_dim in sizes
        for name in KV_FORMATS
    ]


def _case(
    name: str, num_tokens: int, num_heads: int, num_kv_heads: int, head_dim: int, kv_format: str
) -> KernelCase:
    def make(device: torch.device, seed: int) -> Problem:
        from vlmflow_engine.kernels.store_kv import store_kv, store_kv_reference

        generator = generator_of(device, seed)
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        heads = [num_heads, num_kv_heads, num_kv_heads]
        qkv = random((num_tokens, sum(heads), head_dim), dtype, device, generator)
        q, k, v = torch.split(qkv, heads, dim=1)
        angles = random((num_tokens, 1, head_dim // 2), torch.float32, device, generator)
        cos, sin = (torch.cat([x, x], dim=-1).to(dtype) for x in (angles.cos(), angles.sin()))
        cache = allocate_layer(
            (num_tokens // 64 + 2, 64, num_kv_heads, head_dim),
            quant_policy=KV_FORMATS[kv_format],
            dtype=dtype,
            device=device,
        )
        order = torch.randperm(cache.key.rows.shape[0] * 64, device=device, generator=generator)
        slots = order[:num_tokens].clone()
        slots[::7] = -1  # padded rows, stored nowhere
        stored = slots[slots >= 0]

        def run() -> Tensor:
            return store_kv(q, k, v, cos, sin, cache, slots)

        def answer() -> tuple[Tensor, ...]:
            turned = run()
            return turned, *(rows.read_slots(stored, dtype) for rows in (cache.key, cache.value))

        def reference() -> tuple[Tensor, ...]:
            turned = [_turned(x.double(), cos.double(), sin.double()) for x in (q, k)]
            return turned[0], turned[1][slots >= 0], v[slots >= 0]

        row_bytes = cache.num_bytes // (cache.key.rows.shape[0] * 64)
        return Problem(
            run=run,
            reference=reference,
            answer=answer,
            # A code is off by half a step of 15, of 255, or by a sixteenth of itself.
            tolerance={"int4": 0.1, "int8": 0.02, "fp8": 0.08, "bf16": 0.01}[kv_format],
            num_bytes=qkv.nbytes + q.nbytes + cos.nbytes + sin.nbytes + len(stored) * row_bytes,
            peers={
                "torch's operators": lambda: store_kv_reference(q, k, v, cos, sin, cache, slots)
            },
        )

    return KernelCase(name=name, make=make)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
