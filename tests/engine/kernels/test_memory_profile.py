"""The largest step runs for every kind of position, and leaves the cache as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.kernels.test_families import LONG_ROPE, TEXT
from tests.tiny_llama import save_tiny_llama
from tests.tiny_qwen2_vl import save_tiny_qwen2_vl
from vlmflow_engine.kernels.dispatch import interpreting
from vlmflow_engine.models.registry import load_model, read_config
from vlmflow_engine.runner.kv_cache import allocate_layer
from vlmflow_engine.runner.memory_profile import run_largest_step
from vlmflow_engine.runner.sizes import Sizes

CPU = torch.device("cpu")


def _save(folder: Path, kind: str, **fields: Any) -> Path:
    if kind == "qwen2_vl":
        text = {"num_hidden_layers": 1, "num_key_value_heads": 1}
        return save_tiny_qwen2_vl(folder, kind, text_config=text, vision_config={"depth": 1})
    return save_tiny_llama(folder, kind=kind, **TEXT | {"num_hidden_layers": 1} | fields)


@pytest.mark.parametrize(
    ("kind", "fields"), [("llama", {}), ("phi3", LONG_ROPE), ("qwen2_vl", {})], ids=str
)
@torch.inference_mode()
def test_the_largest_step_runs(kind, fields, tmp_path):
    _save(tmp_path, kind, **fields)
    decoder = load_model(tmp_path, read_config(tmp_path), dtype=torch.float32, device=CPU).decoder
    shape = (1, 16, decoder.num_kv_heads, decoder.head_dim)
    caches = [
        allocate_layer(shape, quant_policy=0, dtype=torch.float32, device=CPU)
        for _ in range(decoder.num_layers)
    ]
    sizes = Sizes(session_len=40, max_batch_size=3, max_num_tokens=24, block_size=16)
    rows: list[int] = []
    embed = decoder.embed
    decoder.embed = lambda ids: rows.append(len(ids)) or embed(ids)
    with interpreting():
        run_largest_step(decoder, caches, sizes, CPU)
    assert rows == [24]
    assert not any(cache.key.rows.any() or cache.value.rows.any() for cache in caches)
