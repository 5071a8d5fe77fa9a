"""The vision tower, against transformers' CLIP."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from tests.tiny_llava import CPU, VISION_CONFIG, randomise
from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.clip import ClipVisionTower
from vlmflow_engine.models.weights import Checkpoint

RENAMES = ((r"(vision_model\.)?", "vision."),)


def save_clip(folder: Path, **overrides: object) -> CLIPVisionModel:
    model = CLIPVisionModel(CLIPVisionConfig(**VISION_CONFIG | overrides)).eval()
    randomise(model, seed=2)
    model.save_pretrained(folder)
    return model


def load_tower(folder: Path, model: CLIPVisionModel, *, num_layers: int) -> ClipVisionTower:
    weights = Checkpoint(folder, RENAMES, dtype=torch.float32, device=CPU)
    return ClipVisionTower(model.config, weights, num_layers=num_layers)


def make_pixels(model: CLIPVisionModel, num_images: int = 2) -> Tensor:
    side, generator = model.config.image_size, torch.Generator().manual_seed(0)
    return torch.randn(num_images, 3, side, side, generator=generator)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("image_size", "patch_size"), [(96, 16), (70, 14), (32, 32), (6, 1), (100, 16)]
)
def test_patch_embedding_as_a_linear_layer_is_the_convolution(tmp_path, image_size, patch_size):
    model = save_clip(tmp_path, image_size=image_size, patch_size=patch_size)
    tower = load_tower(tmp_path, model, num_layers=0)
    pixels = make_pixels(model)
    expected = model.pre_layrnorm(model.embeddings(pixels))
    assert_close(tower(pixels, [0]), expected)


@torch.inference_mode()
def test_pixels_may_lie_in_memory_channels_last(tmp_path):
    model = save_clip(tmp_path)
    tower = load_tower(tmp_path, model, num_layers=1)
    pixels = make_pixels(model)
    channels_last = pixels.contiguous(memory_format=torch.channels_last)
    assert torch.equal(tower(channels_last, [1]), tower(pixels, [1]))


@torch.inference_mode()
@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_hidden_states_after_every_layer_are_those_of_transformers(tmp_path, hidden_act):
    model = save_clip(tmp_path, hidden_act=hidden_act)
    pixels = make_pixels(model, num_images=3)
    expected = model(pixels, output_hidden_states=True).hidden_states
    tower = load_tower(tmp_path, model, num_layers=3)
    for index in range(4):
        assert_close(tower(pixels, [index]), expected[index])


@torch.inference_mode()
def test_several_hidden_states_stand_side_by_side_in_the_order_asked_for(tmp_path):
    model = save_clip(tmp_path)
    pixels = make_pixels(model)
    tower = load_tower(tmp_path, model, num_layers=3)
    expected = torch.cat([tower(pixels, [3]), tower(pixels, [1])], dim=-1)
    assert torch.equal(tower(pixels, [3, 1]), expected)


@torch.inference_mode()
def test_images_of_a_batch_do_not_see_each_other(tmp_path):
    model = save_clip(tmp_path)
    pixels = make_pixels(model, num_images=5)
    tower = load_tower(tmp_path, model, num_layers=3)
    together = tower(pixels, [3])
    for index in range(5):
        assert_close(tower(pixels[index : index + 1], [3])[0], together[index])


@torch.inference_mode()
def test_layers_behind_the_features_are_neither_read_nor_computed(tmp_path):
    model = save_clip(tmp_path)
    weights = Checkpoint(tmp_path, RENAMES, dtype=torch.float32, device=CPU)
    tower = ClipVisionTower(model.config, weights, num_layers=2)
    assert len(tower.layers) == 2
    assert "vision.encoder.layers.1.mlp.fc1.weight" not in weights
    assert "vision.encoder.layers.2.mlp.fc1.weight" in weights


def test_an_unknown_activation_is_a_model_error(tmp_path):
    model = save_clip(tmp_path)
    model.config.hidden_act = "snake"
    with pytest.raises(ModelError, match="activation 'snake' is not known"):
        load_tower(tmp_path, model, num_layers=1)
