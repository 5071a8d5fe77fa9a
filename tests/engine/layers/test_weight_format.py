"""Which format weights are kept in, and where one is refused."""

import pytest
import torch

from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import ConfigError
from vlmflow_engine.layers import weight_format
from vlmflow_engine.layers.int8_weight import Int8Format
from vlmflow_engine.layers.linear_weight import PlainFormat
from vlmflow_engine.layers.packed_weight import PackedFormat
from vlmflow_engine.layers.weight_format import choose_format

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def onednn(monkeypatch):
    monkeypatch.setattr(weight_format, "_has_onednn", lambda: True)
    monkeypatch.setattr(weight_format.platform, "machine", lambda: "x86_64")


def chosen(device=CPU, dtype=torch.float32, **options):
    return choose_format(device, dtype, PytorchEngineConfig(**options))


def test_a_cpu_has_its_weights_packed_and_a_gpu_as_they_are_stored(onednn):
    assert isinstance(chosen(), PackedFormat)
    assert isinstance(chosen(CUDA, torch.bfloat16), PlainFormat)


def test_weights_stay_as_they_are_where_nobody_multiplies_them_packed(onednn, monkeypatch):
    assert isinstance(chosen(dtype=torch.float16), PlainFormat)
    assert isinstance(chosen(batch_invariant=True), PlainFormat)
    monkeypatch.setattr(weight_format.platform, "machine", lambda: "aarch64")
    assert isinstance(chosen(), PlainFormat)


def test_int8_takes_a_cpu_with_vnni(onednn, monkeypatch):
    monkeypatch.setattr(weight_format, "_cpu_flags", lambda: frozenset(("avx2", "avx_vnni")))
    assert isinstance(chosen(quant="int8"), Int8Format)
    monkeypatch.setattr(weight_format, "_cpu_flags", lambda: frozenset(("avx2",)))
    with pytest.raises(ConfigError, match="quant='int8' takes a CPU that multiplies bytes"):
        chosen(quant="int8")


def test_int8_is_refused_on_a_gpu_and_in_float16(onednn):
    with pytest.raises(ConfigError, match="quant='int8' is for CPUs, and this model runs on a GPU"):
        chosen(CUDA, torch.bfloat16, quant="int8")
    with pytest.raises(ConfigError, match="takes dtype 'bfloat16' or 'float32', got .*float16"):
        chosen(dtype=torch.float16, quant="int8")


def test_another_quant_is_refused():
    with pytest.raises(ConfigError, match="quant must be one of None, int8, got 'int4'"):
        PytorchEngineConfig(quant="int4")
