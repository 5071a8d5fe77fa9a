"""What is stored in a slot is what is read from it, and no other slot moves."""

import pytest
import torch
from torch import Tensor

from tests.tiny_llava import CPU
from vlmflow_engine.kernels.kv_float8 import dequantise_float8, quantise_float8
from vlmflow_engine.kernels.kv_quant import dequantise, quantise
from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache, PagedRows
from vlmflow_engine.runner.kv_cache import allocate_layer

SHAPE = (7, 5, 3, 16)  # blocks, tokens of a block, KV heads, head_dim
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
POLICIES = (0, 8, 4, 16)

pytestmark = [
    pytest.mark.parametrize("dtype", DTYPES, ids=str),
    pytest.mark.parametrize("policy", POLICIES),
]


def draw(num_tokens: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, *SHAPE[2:], generator=generator).to(dtype)


def slots_of(num_tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(SHAPE[0] * SHAPE[1], generator=generator)[:num_tokens]


def allocate(policy: int, dtype: torch.dtype) -> LayerKVCache:
    return allocate_layer(SHAPE, quant_policy=policy, dtype=dtype, device=CPU)


def as_stored(x: Tensor, policy: int) -> Tensor:
    if policy == 16:
        return dequantise_float8(*quantise_float8(x), x.dtype)
    return dequantise(*quantise(x, policy), policy, x.dtype) if policy else x


def tensors_of(rows: PagedRows) -> list[Tensor]:
    return [tensor for tensor in (rows.rows, rows.scales) if tensor is not None]


@pytest.mark.parametrize("num_tokens", [1, 17, 35])
def test_slots_are_read_as_they_were_stored(num_tokens, policy, dtype):
    cache = allocate(policy, dtype)
    k, v, slots = draw(num_tokens, dtype), draw(num_tokens, dtype, 1), slots_of(num_tokens)
    cache.store(k, v, slots)
    for rows, stored in ((cache.key, k), (cache.value, v)):
        back = rows.read_slots(slots, dtype)
        assert back.dtype == dtype
        assert torch.equal(back, as_stored(stored, policy))
        assert torch.equal(rows.read_slots(slots[:1], dtype), back[:1])


def test_blocks_are_read_as_their_slots_are(policy, dtype):
    cache = allocate(policy, dtype)
    everywhere = torch.arange(SHAPE[0] * SHAPE[1])
    cache.store(draw(35, dtype), draw(35, dtype, 1), everywhere)
    blocks = torch.tensor([3, 0, 6, 3])
    slots = (blocks[:, None] * SHAPE[1] + torch.arange(SHAPE[1])).flatten()
    for rows in (cache.key, cache.value):
        assert torch.equal(rows.read_blocks(blocks, dtype), rows.read_slots(slots, dtype))


def test_a_store_leaves_all_other_slots_as_they_are(policy, dtype):
    cache = allocate(policy, dtype)
    slots = slots_of(35)
    cache.store(draw(35, dtype), draw(35, dtype, 1), slots)
    before = [[tensor.clone() for tensor in tensors_of(rows)] for rows in (cache.key, cache.value)]
    cache.store(draw(9, dtype, 2), draw(9, dtype, 3), slots[:9])
    for rows, old in zip((cache.key, cache.value), before, strict=True):
        for tensor, was in zip(tensors_of(rows), old, strict=True):
            is_same = (tensor == was).flatten(2).all(dim=-1).flatten()
            assert is_same[slots[9:]].all()
            assert not is_same[slots[:9]].any()


def test_a_token_is_stored_alike_in_whatever_company(policy, dtype):
    k, v, slots = draw(20, dtype), draw(20, dtype, 1), slots_of(20)
    together, alone = allocate(policy, dtype), allocate(policy, dtype)
    together.store(k, v, slots)
    for token in torch.randperm(20).tolist():
        one = slice(token, token + 1)
        alone.store(k[one], v[one], slots[one])
    for rows, others in ((together.key, alone.key), (together.value, alone.value)):
        for tensor, other in zip(tensors_of(rows), tensors_of(others), strict=True):
            assert torch.equal(tensor, other)


def test_what_was_never_stored_reads_as_zeros(policy, dtype):
    cache = allocate(policy, dtype)
    assert not cache.value.read_blocks(torch.arange(SHAPE[0]), dtype).any()


def test_views_of_a_merged_projection_are_stored_as_they_are(policy, dtype):
    merged = torch.cat([draw(20, dtype), draw(20, dtype, 1)], dim=1)
    k, v = merged.split(SHAPE[2], dim=1)
    cache, slots = allocate(policy, dtype), slots_of(20)
    cache.store(k, v, slots)
    assert torch.equal(cache.key.read_slots(slots, dtype), as_stored(k.contiguous(), policy))
    assert torch.equal(cache.value.read_slots(slots, dtype), as_stored(v.contiguous(), policy))


def test_only_a_cache_of_the_dtype_is_exact_and_scales_are_counted(policy, dtype):
    cache = allocate(policy, dtype)
    assert cache.is_exact == (policy == 0)
    row_bytes = {0: 16 * dtype.itemsize, 8: 16 + 4, 4: 8 + 4, 16: 16 + 2}[policy]
    assert cache.num_bytes == 2 * 7 * 5 * 3 * row_bytes
