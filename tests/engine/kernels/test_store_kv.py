"""Keys and values go turned, rounded and quantised into their slots, as the torch path does it."""

import math

import pytest
import torch
from torch import Tensor

from tests.tiny_llava import CPU
from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache
from vlmflow_engine.kernels.store_kv import store_kv, store_kv_reference
from vlmflow_engine.layers.rotary import RotaryEmbedding, rotate
from vlmflow_engine.runner.kv_cache import allocate_layer

POLICIES = (0, 8, 4, 16)
# Heads, KV heads, head_dim: GQA of 1 to 8, and what is no power of two.
SHAPES = ((1, 1, 16), (8, 1, 64), (7, 1, 80), (6, 3, 96), (14, 2, 128), (20, 5, 24))
BLOCKS, BLOCK_SIZE = 11, 16
# The interpreter computes with NumPy, which warns where a GPU does not.
ignores_infinities = pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")
POISON = 0x5A  # the bytes of a cache before anything is stored


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def merged(num_tokens: int, shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """q, k and v as slices of one projection."""
    num_heads, num_kv_heads, head_dim = shape
    sizes = [num_heads, num_kv_heads, num_kv_heads]
    return torch.split(draw(num_tokens, sum(sizes), head_dim, seed=0, dtype=dtype), sizes, dim=1)


def angles(num_tokens: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    frequencies = 1e4 ** (-torch.arange(head_dim // 2) / (head_dim // 2))
    rotary = RotaryEmbedding(frequencies, attention_factor=1.19, dtype=dtype, device="cpu")
    return rotary.at(torch.arange(num_tokens) * 31 % 4099)


def slots_of(num_tokens: int) -> Tensor:
    """Shuffled places; every fifth token is stored nowhere."""
    order = torch.randperm(BLOCKS * BLOCK_SIZE, generator=torch.Generator().manual_seed(1))
    slots = order[:num_tokens]
    slots[::5] = -1
    return slots


def poisoned(shape: tuple[int, int, int], policy: int, dtype: torch.dtype) -> LayerKVCache:
    cache = allocate_layer(
        (BLOCKS, BLOCK_SIZE, *shape[1:]), quant_policy=policy, dtype=dtype, device=CPU
    )
    for tensor in bytes_of(cache):
        tensor.fill_(POISON)
    return cache


def bytes_of(cache: LayerKVCache) -> list[Tensor]:
    tensors = (cache.key.rows, cache.key.scales, cache.value.rows, cache.value.scales)
    return [tensor.view(torch.uint8) for tensor in tensors if tensor is not None]


def assert_same_bytes(cache: LayerKVCache, other: LayerKVCache) -> None:
    for tensor, expected in zip(bytes_of(cache), bytes_of(other), strict=True):
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cache_and_queries_equal_those_of_the_torch_path_bit_by_bit(shape, policy):
    q, k, v = merged(9, shape, torch.float32)
    cos, sin = angles(9, shape[2], torch.float32)
    slots = slots_of(9)
    cache, expected = (poisoned(shape, policy, torch.float32) for _ in range(2))
    turned = store_kv(q, k, v, cos, sin, cache, slots)
    assert turned.is_contiguous()
    assert torch.equal(turned, rotate(q, cos, sin))
    is_stored = slots >= 0
    expected.store(rotate(k, cos, sin)[is_stored], v[is_stored], slots[is_stored])
    assert_same_bytes(cache, expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_float16_is_rounded_once(policy):
    shape = (8, 2, 32)
    q, k, v = merged(7, shape, torch.float16)
    cos, sin = angles(7, 32, torch.float32)
    cache, expected = (poisoned(shape, policy, torch.float16) for _ in range(2))
    turned = store_kv(q, k, v, cos, sin, cache, slots_of(7))
    assert torch.equal(turned, rotate(q.float(), cos, sin).half())
    store_kv_reference(q, k, v, cos, sin, expected, slots_of(7))
    assert_same_bytes(cache, expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_bfloat16_is_as_near_as_the_interpreter_rounds_it(policy):
    # It cuts off what a bfloat16 does not hold, so a turned element may be one of them further off.
    shape = (4, 2, 32)
    q, k, v = merged(7, shape, torch.bfloat16)
    cos, sin = angles(7, 32, torch.bfloat16)
    slots = torch.arange(7)
    cache, expected = (poisoned(shape, policy, torch.bfloat16) for _ in range(2))
    turned = store_kv(q, k, v, cos, sin, cache, slots)
    reference = store_kv_reference(q, k, v, cos, sin, expected, slots)
    torch.testing.assert_close(turned, reference, rtol=2**-7, atol=1e-6)
    assert torch.equal(
        cache.value.rows.view(torch.uint8), expected.value.rows.view(torch.uint8)
    )  # values do not turn
    step = {0: 0, 8: 2 / 255, 4: 2 / 15, 16: 1 / 8}[policy] * 4  # a code, of the largest elements
    torch.testing.assert_close(
        cache.key.read_slots(slots, torch.float32),
        expected.key.read_slots(slots, torch.float32),
        rtol=2**-7,
        atol=step + 1e-6,
    )


@pytest.mark.parametrize("num_tokens", [0, 1, 15, 16, 17, 131])
def test_any_number_of_tokens_is_stored_and_slot_minus_one_is_skipped(num_tokens):
    shape = (2, 1, 16)
    q, k, v = merged(num_tokens, shape, torch.float32)
    cos, sin = angles(num_tokens, 16, torch.float32)
    cache, expected = (poisoned(shape, 8, torch.float32) for _ in range(2))
    turned = store_kv(q, k, v, cos, sin, cache, slots_of(num_tokens))
    assert torch.equal(
        turned, store_kv_reference(q, k, v, cos, sin, expected, slots_of(num_tokens))
    )
    assert_same_bytes(cache, expected)


def test_a_step_of_padded_rows_alone_leaves_the_cache_as_it_is():
    shape = (2, 1, 16)
    q, k, v = merged(4, shape, torch.float32)
    cos, sin = angles(4, 16, torch.float32)
    cache = poisoned(shape, 4, torch.float32)
    store_kv(q, k, v, cos, sin, cache, torch.full((4,), -1))
    assert all((tensor == POISON).all() for tensor in bytes_of(cache))


@pytest.mark.parametrize("policy", POLICIES)
def test_without_angles_nothing_turns(policy):
    shape = (6, 2, 32)
    q, k, v = merged(7, shape, torch.float32)
    cache, expected = (poisoned(shape, policy, torch.float32) for _ in range(2))
    same = store_kv(q, k, v, None, None, cache, slots_of(7))
    assert torch.equal(same, q) and same.is_contiguous()
    store_kv_reference(q, k, v, None, None, expected, slots_of(7))
    assert_same_bytes(cache, expected)


def test_halves_of_a_head_may_turn_by_angles_of_their_own():
    shape = (2, 1, 16)
    q, k, v = merged(5, shape, torch.float32)
    cos, sin = draw(5, 1, 16, seed=2), draw(5, 1, 16, seed=3)
    cache = poisoned(shape, 0, torch.float32)
    assert torch.equal(store_kv(q, k, v, cos, sin, cache, slots_of(5)), rotate(q, cos, sin))


def special_rows() -> Tensor:
    """Rows of what is seldom: equal elements, the smallest and the largest numbers, in between."""
    row = draw(32, seed=4)
    tiny = torch.finfo(torch.float32).tiny
    rows = [torch.full((32,), value) for value in (0.0, -0.0, 1.0, 1.001, -1.001, -240.0)]
    rows += [row * scale for scale in (1e38, 1e30, 1e-30, tiny, 1e-42)]
    rows += [row + offset for offset in (100.0, -100.0, 3e38)]
    rows += [torch.arange(32.0) / 2 + 1, torch.arange(32.0) * 8.5, torch.arange(32) / 1024 + 1e-3]
    return torch.stack(rows)


@ignores_infinities
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("head_dim", [32, 24])
def test_rows_of_any_magnitude_are_stored_as_the_torch_path_stores_them(head_dim, policy):
    v = special_rows()[:, None, :head_dim]
    slots = torch.arange(len(v))
    cache, expected = (poisoned((1, 1, head_dim), policy, torch.float32) for _ in range(2))
    store_kv(v, v, v, None, None, cache, slots)
    expected.store(v, v, slots)
    assert_same_bytes(cache, expected)


@ignores_infinities
@pytest.mark.parametrize("policy", [8, 4, 16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_is_read_back_as_nan_and_harms_no_other(policy, value):
    v = draw(3, 2, 16, seed=5)
    v[1, 0, 11] = value
    cache, slots = poisoned((2, 2, 16), policy, torch.float32), torch.arange(3)
    store_kv(v, v, v, None, None, cache, slots)
    back = cache.value.read_slots(slots, torch.float32)
    is_nan = torch.zeros(3, 2, 16, dtype=torch.bool)
    is_nan[1, 0] = True
    assert torch.equal(back.isnan(), is_nan)
