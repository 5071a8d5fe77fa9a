"""A model whose weights are packed, or kept in 8 bits, as the engine has it on a CPU."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_llava import compute_logits, load_tiny_llava, save_tiny_llava
from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import ConfigError
from vlmflow_engine.layers.int8_weight import Int8Format, Int8Weight, OneDnnInt8Weight
from vlmflow_engine.layers.linear_weight import PlainFormat
from vlmflow_engine.layers.packed_weight import OneDnnWeight, PackedFormat, PackedWeight
from vlmflow_engine.models.registry import load_model, read_config
from vlmflow_engine.runner.model_runner import ModelRunner

CPU = torch.device("cpu")
PROMPTS = [torch.arange(3, 40) % 90, torch.arange(5, 12)]


def load(folder: Path, weight_format, dtype=torch.float32):
    return load_model(
        folder, read_config(folder), dtype=dtype, device=CPU, weight_format=weight_format
    )


def relative_error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    found_rows, expected_rows = torch.cat(found), torch.cat(expected)
    return float((found_rows - expected_rows).norm() / expected_rows.norm())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_llava(tmp_path_factory.mktemp("llava"), scale=1.0)


@torch.inference_mode()
def test_packed_weights_give_the_logits_of_those_that_are_stored(folder):
    expected = compute_logits(load_tiny_llava(folder).decoder, PROMPTS)
    found = compute_logits(load(folder, PackedFormat(None)).decoder, PROMPTS)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@torch.inference_mode()
def test_8_bits_give_nearly_the_logits_of_bfloat16(folder):
    expected = compute_logits(load_tiny_llava(folder).decoder, PROMPTS)
    half = compute_logits(load(folder, PlainFormat(), torch.bfloat16).decoder, PROMPTS)
    model = load(folder, Int8Format(None, PackedFormat(None)), torch.bfloat16)
    found = compute_logits(model.decoder, PROMPTS)
    assert relative_error(half, expected) < relative_error(found, expected) < 0.08


def test_layers_of_decoder_head_and_tower_are_kept_in_8_bits(folder):
    model = load(folder, Int8Format(None, PackedFormat(None)))
    layers = [*model.decoder.linears, model.decoder.lm_head, model.vision.tower.layers[0].qkv_proj]
    assert all(isinstance(layer.weight, OneDnnInt8Weight) for layer in layers)
    assert not isinstance(model.vision.tower.patch_embedding.weight, OneDnnInt8Weight)


def test_beside_8_bits_what_stays_as_it_is_stored_is_not_read_over(folder):
    stored, model = load(folder, PlainFormat()), load(folder, Int8Format(None, PlainFormat()))
    for ours, theirs in zip(model.vision._linears, stored.vision._linears, strict=True):
        assert torch.equal(ours.matrix, theirs.matrix)


@torch.inference_mode()
def test_a_tied_head_is_packed_and_the_embedding_stays(tmp_path):
    folder = save_tiny_llava(tmp_path, text_config={"tie_word_embeddings": True}, scale=1.0)
    model = load(folder, PackedFormat(None))
    stored = load_file(folder / "model.safetensors")["language_model.model.embed_tokens.weight"]
    assert torch.equal(model.decoder.embedding, stored)
    expected = compute_logits(load_tiny_llava(folder).decoder, PROMPTS)
    for ours, theirs in zip(compute_logits(model.decoder, PROMPTS), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("quant", "kinds"),
    [(None, (PackedWeight, OneDnnWeight)), ("int8", (Int8Weight, OneDnnInt8Weight))],
)
def test_the_engine_keeps_weights_as_it_is_told_to(folder, quant, kinds):
    config = PytorchEngineConfig(
        device_type="cpu", dtype="bfloat16", quant=quant, language_model_only=True
    )
    runner = ModelRunner(folder, read_config(folder), config, None)
    assert all(isinstance(linear.weight, kinds) for linear in runner.model.decoder.linears)


def test_a_model_of_transformers_own_code_is_refused(folder):
    config = read_config(folder)
    config.vlmflow_family = "other models of transformers"
    with pytest.raises(ConfigError, match="quant cannot be had for a model that runs through"):
        load_model(
            folder,
            config,
            dtype=torch.float32,
            device=CPU,
            weight_format=Int8Format(None, PackedFormat(None)),
        )
