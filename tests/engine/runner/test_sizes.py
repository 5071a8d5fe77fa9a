"""What a config leaves open is filled in with what suits the device."""

import pytest
import torch

from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import ConfigError
from vlmflow_engine.runner.sizes import Sizes, resolve_sizes


def resolve(device: str, *, has_triton: bool = False, **config: int) -> Sizes:
    return resolve_sizes(
        PytorchEngineConfig(**config),
        max_positions=4096,
        device=torch.device(device),
        has_triton=has_triton,
    )


def test_a_gpu_gets_larger_steps_and_pages_than_a_cpu():
    assert resolve("cpu") == Sizes(4096, 64, 2048, 16)
    assert resolve("cuda", has_triton=True) == Sizes(4096, 256, 8192, 64)


def test_what_is_asked_for_is_taken():
    asked = {
        "session_len": 100,
        "max_batch_size": 3,
        "max_prefill_token_num": 7,
        "block_size": 32,
    }
    assert resolve("cpu", **asked) == resolve("cuda", **asked) == Sizes(100, 3, 7, 32)


@pytest.mark.parametrize("block_size", [5, 8, 48, 256])
def test_pages_that_the_kernels_cannot_read_are_refused(block_size):
    assert resolve("cpu", block_size=block_size).block_size == block_size
    with pytest.raises(ConfigError, match=f"block_size={block_size} .* 16, 32, 64, 128"):
        resolve("cuda", has_triton=True, block_size=block_size)


def test_a_session_is_never_longer_than_the_model_was_made_for(caplog):
    assert resolve("cpu", session_len=8192).session_len == 4096
    assert "session_len=8192 exceeds the 4096 positions" in caplog.text
