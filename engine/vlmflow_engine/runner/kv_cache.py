"""The paged KV cache: its size is found here, once, and lives nowhere else."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlmflow_engine.config import FLOAT8_POLICY, PytorchEngineConfig
from vlmflow_engine.errors import ConfigError
from vlmflow_engine.kernels.kv_float8 import FLOAT8_DTYPE, FLOAT8_SCALES_PER_ROW
from vlmflow_engine.kernels.kv_quant import SCALES_DTYPE, SCALES_PER_ROW, codes_per_row
from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache, PagedRows
from vlmflow_engine.models.family import PagedDecoder
from vlmflow_engine.runner.device import free_memory_bytes
from vlmflow_engine.runner.sizes import Sizes


@dataclass(frozen=True, slots=True)
class KVCache:
    """What all layers store, and in how many blocks."""

    layers: list[LayerKVCache]
    num_blocks: int
    block_size: int

    @property
    def num_bytes(self) -> int:
        return sum(layer.num_bytes for layer in self.layers)


def allocate_kv_cache(
    decoder: PagedDecoder,
    config: PytorchEngineConfig,
    *,
    sizes: Sizes,
    dtype: torch.dtype,
    device: torch.device,
    reserved_bytes: int = 0,
) -> KVCache:
    """Allocate as many blocks as asked for, else as the share of free memory holds.

    reserved_bytes  of the free memory, that steps need beside the cache
    Never more than a full batch of full-length sequences can use. Raises ConfigError if the share
    does not hold a single sequence of `session_len` tokens, or if `quant_policy` does not go with
    the model.
    """
    if config.quant_policy == 4 and decoder.head_dim % 2:
        raise ConfigError(
            "quant_policy=4 stores two values in a byte and needs an even head_dim, but the "
            f"model's is {decoder.head_dim}; set quant_policy to 8 or 0"
        )

    def layer(num_blocks: int, device: torch.device) -> LayerKVCache:
        return allocate_layer(
            (num_blocks, sizes.block_size, decoder.num_kv_heads, decoder.head_dim),
            quant_policy=config.quant_policy,
            dtype=dtype,
            device=device,
        )

    block_bytes = decoder.num_layers * layer(1, torch.device("meta")).num_bytes
    num_blocks = config.num_blocks
    if num_blocks == 0:
        left = free_memory_bytes(device) - reserved_bytes
        free = max(0, int(left * config.cache_max_entry_count))
        blocks_per_sequence = -(-sizes.session_len // sizes.block_size)
        num_blocks = min(free // block_bytes, sizes.max_batch_size * blocks_per_sequence)
        if num_blocks < blocks_per_sequence:
            raise ConfigError(
                f"a KV cache for one sequence of session_len={sizes.session_len} tokens takes "
                f"{blocks_per_sequence * block_bytes / 2**20:,.0f} MiB, but "
                f"cache_max_entry_count={config.cache_max_entry_count} of the free memory is "
                f"{free / 2**20:,.0f} MiB; lower session_len"
            )
    try:
        layers = [layer(num_blocks, device) for _ in range(decoder.num_layers)]
    except (MemoryError, RuntimeError) as error:  # NumPy's, and torch's on a GPU
        raise ConfigError(
            f"a KV cache of num_gpu_blocks={num_blocks} takes {num_blocks * block_bytes:,} bytes, "
            "more than there are"
        ) from error
    return KVCache(layers, num_blocks, sizes.block_size)


def allocate_layer(
    shape: tuple[int, int, int, int], *, quant_policy: int, dtype: torch.dtype, device: torch.device
) -> LayerKVCache:
    """Allocate one layer's zeroed blocks.

    shape  [num_blocks, block_size, num_kv_heads, head_dim]
    dtype  the model's; what is stored where quant_policy is 0
    """
    return LayerKVCache(
        key=_paged_rows(shape, quant_policy, dtype, device),
        value=_paged_rows(shape, quant_policy, dtype, device),
    )


def _paged_rows(
    shape: tuple[int, int, int, int], quant_policy: int, dtype: torch.dtype, device: torch.device
) -> PagedRows:
    if quant_policy == 0:
        return PagedRows(_zeros(shape, dtype, device))
    *places, head_dim = shape
    if quant_policy == FLOAT8_POLICY:
        scales = _zeros((*places, FLOAT8_SCALES_PER_ROW), SCALES_DTYPE, device)
        return PagedRows(_zeros(shape, FLOAT8_DTYPE, device), 8, scales)
    codes = _zeros((*places, codes_per_row(head_dim, quant_policy)), torch.uint8, device)
    scales = _zeros((*places, SCALES_PER_ROW), SCALES_DTYPE, device)
    return PagedRows(codes, quant_policy, scales)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, for what is read before it is written is masked, and no mask hides a NaN."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # NumPy asks the system for zeroed pages: they cost memory only once they are written to.
    # torch.zeros writes to all of them.
    raw = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(raw).view(dtype).view(shape)
