"""The KV cache: how many blocks, of what shape, and what they cost."""

from types import SimpleNamespace

import psutil
import pytest
import torch

from tests.tiny_llava import CPU
from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import ConfigError
from vlmflow_engine.models.families.llava import LlavaModel
from vlmflow_engine.runner.kv_cache import KVCache, allocate_kv_cache
from vlmflow_engine.runner.sizes import Sizes

# The tiny decoder: 2 layers, 2 KV heads of 16; keys and values, float32.
TOKEN_BYTES = 2 * 2 * 2 * 16 * 4
BLOCK_BYTES = 16 * TOKEN_BYTES


@pytest.fixture
def set_free_bytes(monkeypatch):
    """Let the host have so much memory that the engine may share out so many bytes."""

    def set_available(num_bytes: int) -> None:
        memory = SimpleNamespace(available=2 * num_bytes)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    return set_available


def make_sizes(max_batch_size: int, session_len: int, block_size: int = 16) -> Sizes:
    return Sizes(session_len, max_batch_size, max_num_tokens=2048, block_size=block_size)


def allocate(
    model: LlavaModel,
    *,
    max_batch_size: int = 4,
    session_len: int = 100,
    dtype: torch.dtype = torch.float32,
    **config: object,
) -> KVCache:
    asked = PytorchEngineConfig(**config)
    return allocate_kv_cache(
        model.decoder,
        asked,
        sizes=make_sizes(max_batch_size, session_len, asked.block_size or 16),
        dtype=dtype,
        device=CPU,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_layer_has_zeroed_keys_and_values_of_its_own(dtype, tiny_model):
    cache = allocate(tiny_model, num_gpu_blocks=3, block_size=8, dtype=dtype)
    tensors = [stored.rows for layer in cache.layers for stored in (layer.key, layer.value)]
    assert len(tensors) == 2 * tiny_model.decoder.num_layers
    for number, tensor in enumerate(tensors, start=1):
        assert tensor.shape == (3, 8, 2, 16)
        assert tensor.dtype == dtype
        assert not tensor.any()
        tensor.fill_(number)
    assert [tensor.unique().item() for tensor in tensors] == [1, 2, 3, 4]
    assert (cache.num_blocks, cache.block_size) == (3, 8)
    assert cache.num_bytes == 3 * 8 * TOKEN_BYTES * dtype.itemsize // 4


@pytest.mark.parametrize(
    ("policy", "bits", "row_bytes", "dtype", "num_scales"),
    [(8, 8, 16, torch.uint8, 2), (4, 4, 8, torch.uint8, 2), (16, 8, 16, torch.float8_e4m3fn, 1)],
)
def test_a_quantised_layer_has_zeroed_codes_and_scales_of_its_own(
    policy, bits, row_bytes, dtype, num_scales, tiny_model
):
    cache = allocate(tiny_model, num_gpu_blocks=3, block_size=8, quant_policy=policy)
    tensors = []
    for layer in cache.layers:
        for stored in (layer.key, layer.value):
            assert (stored.bits, stored.is_float8) == (bits, policy == 16)
            assert (stored.rows.shape, stored.rows.dtype) == ((3, 8, 2, row_bytes), dtype)
            assert stored.scales is not None
            assert stored.scales.shape == (3, 8, 2, num_scales)
            assert stored.scales.dtype == torch.bfloat16
            tensors += [stored.rows, stored.scales]
    assert not any(tensor.any() for tensor in tensors)
    for number, tensor in enumerate(tensors, start=1):
        tensor.fill_(number)
    assert [tensor.float().unique().item() for tensor in tensors] == [1, 2, 3, 4, 5, 6, 7, 8]
    # 2 layers, keys and values, 2 KV heads; 2 bytes each of scale and minimum
    assert cache.num_bytes == 3 * 8 * 2 * 2 * 2 * (row_bytes + 2 * num_scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("policy", "row_bytes"), [(8, 128 + 4), (4, 64 + 4), (16, 128 + 2)])
def test_the_same_memory_holds_as_many_more_blocks_as_its_rows_are_smaller(
    policy, row_bytes, dtype, set_free_bytes
):
    decoder = SimpleNamespace(num_layers=16, num_kv_heads=4, head_dim=128)
    set_free_bytes(1 << 30)
    counts = {}
    for quant_policy in (0, policy):
        cache = allocate_kv_cache(
            decoder,  # type: ignore[arg-type]
            PytorchEngineConfig(quant_policy=quant_policy),
            sizes=make_sizes(10_000, 2048),
            dtype=dtype,
            device=CPU,
        )
        counts[quant_policy] = cache.num_blocks
        block_bytes = cache.num_bytes // cache.num_blocks
        assert cache.num_bytes <= 0.8 * 2**30 < cache.num_bytes + block_bytes
    plain = 128 * dtype.itemsize
    assert counts[policy] / counts[0] == pytest.approx(plain / row_bytes, rel=1e-3)
    assert plain / row_bytes > 0.94 * dtype.itemsize * (2 if policy == 4 else 1)


def test_four_bits_of_an_odd_head_dim_are_refused():
    decoder = SimpleNamespace(num_layers=2, num_kv_heads=4, head_dim=33)
    with pytest.raises(ConfigError, match=r"quant_policy=4 .* even head_dim.* 33; set .* 8 or 0"):
        allocate_kv_cache(
            decoder,  # type: ignore[arg-type]
            PytorchEngineConfig(quant_policy=4, num_gpu_blocks=2),
            sizes=make_sizes(1, 16),
            dtype=torch.float32,
            device=CPU,
        )


def test_blocks_asked_for_are_allocated_whatever_memory_is_free(set_free_bytes, tiny_model):
    set_free_bytes(1)
    assert allocate(tiny_model, num_gpu_blocks=100).num_blocks == 100


@pytest.mark.parametrize("share", [0.25, 0.8])
def test_the_share_of_free_memory_is_filled_with_blocks(share, set_free_bytes, tiny_model):
    set_free_bytes(100 * BLOCK_BYTES)
    cache = allocate(tiny_model, max_batch_size=1000, cache_max_entry_count=share)
    assert cache.num_blocks == 100 * share
    assert cache.num_bytes == share * 100 * BLOCK_BYTES


def test_smaller_elements_make_more_blocks(set_free_bytes, tiny_model):
    set_free_bytes(100 * BLOCK_BYTES)
    cache = allocate(tiny_model, max_batch_size=1000, dtype=torch.bfloat16)
    assert cache.num_blocks == 160


@pytest.mark.parametrize(("session_len", "blocks_each"), [(96, 6), (97, 7), (100, 7), (1, 1)])
def test_there_are_no_more_blocks_than_a_full_batch_can_use(
    session_len, blocks_each, set_free_bytes, tiny_model
):
    set_free_bytes(1000 * BLOCK_BYTES)
    assert allocate(tiny_model, session_len=session_len).num_blocks == 4 * blocks_each


def test_memory_for_one_full_sequence_is_enough_and_less_is_refused(set_free_bytes, tiny_model):
    set_free_bytes(14 * BLOCK_BYTES)  # half of it are the 7 blocks of 100 tokens
    assert allocate(tiny_model, cache_max_entry_count=0.5).num_blocks == 7
    with pytest.raises(ConfigError, match=r"session_len=100.*cache_max_entry_count=0\.49"):
        allocate(tiny_model, cache_max_entry_count=0.49)


def test_blocks_cost_memory_only_once_they_are_written_to(tiny_model):
    process, gibibyte = psutil.Process(), 1 << 30
    before = process.memory_info().rss
    cache = allocate(tiny_model, num_gpu_blocks=gibibyte // BLOCK_BYTES)
    assert cache.num_bytes == gibibyte
    assert process.memory_info().rss - before < gibibyte // 16
