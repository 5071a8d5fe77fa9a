"""InternVL in the original form is its twin in Hugging Face form, bit by bit."""

import json

import pytest
import torch
from torch import Tensor

from tests.tiny_internvl import SIDE, make_internvl, save_hf, save_original
from tests.tiny_llava import CPU, compute_logits
from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.family import ImagePixels
from vlmflow_engine.models.registry import load_model, read_config

CASES = [
    ("internlm2", "300m", {"text_config": {"attention_bias": True}}),
    ("internlm2", "6b", {"vision_feature_layer": -2}),
    ("qwen2", "300m", {}),
    ("qwen3", "6b", {"downsample_ratio": 0.25}),
    ("phi3", "300m", {}),
    ("llama", "300m", {"vision_feature_layer": 2}),
]


@pytest.mark.parametrize(("text", "tower", "fields"), CASES)
def test_it_is_its_twin_bit_by_bit(text, tower, fields, tmp_path):
    model = make_internvl(text, tower, **fields)
    twin = save_hf(tmp_path / "hf", model)
    original = save_original(tmp_path / "original", model, text, tower)
    for ours, theirs in zip(_outputs(original), _outputs(twin), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("text", ["internlm2", "phi3"])
def test_without_its_eyes_it_reads_as_well(text, tmp_path):
    model = make_internvl(text)
    folders = [
        save_hf(tmp_path / "hf", model),
        save_original(tmp_path / "original", model, text, "300m"),
    ]
    config = [read_config(folder) for folder in folders]
    ids = torch.arange(5, 40)
    logits = [
        compute_logits(
            load_model(
                folder, config, dtype=torch.float32, device=CPU, language_model_only=True
            ).decoder,
            [ids],
        )[0]
        for folder, config in zip(folders, config, strict=True)
    ]
    assert torch.equal(*logits)
    with torch.inference_mode():
        expected = model(input_ids=ids[None]).logits[0]
    torch.testing.assert_close(logits[0], expected, rtol=1e-4, atol=1e-4)


def test_columns_come_before_rows_in_the_first_version_of_the_shuffle(tmp_path):
    model = make_internvl()
    v1, v2 = (
        _embeddings(save_original(tmp_path / name, model, "qwen2", "300m", ps_version=name))
        for name in ("v1", "v2")
    )
    # Of each tile's 2 x 2 rows the off-diagonal ones change places.
    assert torch.equal(v1.view(-1, 4, 64)[:, [0, 2, 1, 3]], v2.view(-1, 4, 64))
    assert not torch.equal(v1, v2)


def test_tiles_of_another_size_than_the_tower_was_trained_with(tmp_path):
    """Position embeddings are interpolated as transformers does."""
    model = make_internvl()
    folder = save_original(tmp_path, model, "qwen2", "300m", force_image_size=2 * SIDE)
    pixels = torch.randn(2, 3, 2 * SIDE, 2 * SIDE, generator=torch.Generator().manual_seed(1))
    config = read_config(folder)
    ours = load_model(folder, config, dtype=torch.float32, device=CPU)
    with torch.inference_mode():
        encoded = ours.encode_images([ImagePixels(pixels, ())])[0]
        expected = model.get_image_features(pixels).pooler_output.flatten(0, 1)
    torch.testing.assert_close(encoded, expected, rtol=1e-4, atol=1e-4)


def test_images_are_encoded_by_themselves_whatever_stands_beside_them(tmp_path):
    model = make_internvl(tower="6b")
    folder = save_original(tmp_path, model, "qwen2", "6b")
    ours = load_model(folder, read_config(folder), dtype=torch.float32, device=CPU)
    images = [torch.randn(count, 3, SIDE, SIDE) for count in (3, 1, 13)]
    with torch.inference_mode():
        together = ours.encode_images([ImagePixels(image, ()) for image in images])
        for image, rows in zip(images, together, strict=True):
            expected = model.get_image_features(image).pooler_output.flatten(0, 1)
            torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", ["fewer heads", "a layer too many"])
def test_tensors_that_do_not_fit_the_config_are_named(change, tmp_path):
    folder = save_original(tmp_path, make_internvl("internlm2"), "internlm2", "300m")
    path = folder / "config.json"
    content = json.loads(path.read_text())
    if change == "fewer heads":
        content["llm_config"]["num_key_value_heads"] = 1
        named = "attention.wqkv"
    else:
        content["vision_config"]["num_hidden_layers"] = 2
        named = "encoder.layers.2"
    path.write_text(json.dumps(content))
    config = read_config(folder)
    with pytest.raises(ModelError, match=named):
        load_model(folder, config, dtype=torch.float32, device=CPU)


def _outputs(folder) -> tuple[Tensor, Tensor]:
    """Embeddings of five tiles, and logits of a text."""
    model = load_model(folder, read_config(folder), dtype=torch.float32, device=CPU)
    return _embeddings(folder, model), compute_logits(model.decoder, [torch.arange(5, 60)])[0]


@torch.inference_mode()
def _embeddings(folder, model=None) -> Tensor:
    model = model or load_model(folder, read_config(folder), dtype=torch.float32, device=CPU)
    pixels = torch.randn(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    encoded = model.encode_images([ImagePixels(pixels[:3], ()), ImagePixels(pixels[3:], ())])
    return torch.cat(encoded)
