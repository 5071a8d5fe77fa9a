"""Quantised checkpoints are known by what they say of themselves, and refused in one sentence."""

import pytest
import torch
from safetensors.torch import save_file

from tests.engine.models.test_weights import open_checkpoint
from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.quantisation import check_config

KNOWN = "(AWQ, GPTQ, FP8, bitsandbytes and compressed-tensors)"


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "AWQ"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "GPTQ"),
        ({"quantization_config": {"quant_method": "fp8"}}, "FP8"),
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
        (
            {"text_config": {"quantization_config": {"quant_method": "bitsandbytes"}}},
            "bitsandbytes",
        ),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"compression_config": {"format": "pack-quantized"}}, "'unknown'"),
        ({"quantization_config": {"quant_method": "new\nkind"}}, r"'new\nkind'"),
        ({"quantization_config": 3}, "'unknown'"),
    ],
    ids=str,
)
def test_a_config_that_tells_of_quantisation_is_refused_by_name(config, name):
    with pytest.raises(ModelError) as caught:
        check_config(config, "config.json")
    assert str(caught.value) == (
        f"config.json: the weights are quantised ({name}), and none of the known formats {KNOWN} "
        "can be run yet; take the checkpoint in float32, float16 or bfloat16"
    )


@pytest.mark.parametrize("config", [{}, {"quantization_config": None, "text_config": {}}])
def test_a_config_without_it_passes(config):
    check_config(config, "config.json")


PACKED = torch.zeros(2, dtype=torch.int32)


@pytest.mark.parametrize(
    ("tensors", "name"),
    [
        ({"q.qweight": PACKED, "q.scales": PACKED}, "AWQ"),
        ({"q.qweight": PACKED, "q.g_idx": PACKED}, "GPTQ"),
        ({"q.weight": torch.zeros(2).to(torch.float8_e4m3fn)}, "FP8"),
        ({"q.weight": PACKED, "q.weight.absmax": PACKED}, "bitsandbytes"),
        ({"q.weight_packed": PACKED}, "compressed-tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_are_quantised_are_refused_whatever_the_config_says(tensors, name, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        open_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    assert str(caught.value).startswith(f"{path}: the weights are quantised ({name}), and none of ")
