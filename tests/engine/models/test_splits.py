"""Tensors that are stored otherwise than they are used: fused, grouped, in another shape."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.tiny_llava import CPU
from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.weights import Checkpoint

FILE = "model.safetensors"
RENAMES = ((r"model\.", "text."),)


def open_checkpoint(folder: Path, dtype: torch.dtype = torch.float32) -> Checkpoint:
    return Checkpoint(folder, RENAMES, dtype=dtype, device=CPU)


@pytest.fixture
def fused(tmp_path) -> dict[str, Tensor]:
    """Two layers' qkv with biases, 4 query heads and 2 KV heads of 3 rows each, 5 columns."""
    shapes = {"weight": (24, 5), "bias": (24,)}
    tensors = {
        f"model.layers.{layer}.wqkv.{kind}": torch.randn(shape)
        for layer in (0, 11)
        for kind, shape in shapes.items()
    }
    save_file(tensors, tmp_path / FILE)
    return tensors


STACKED = {r"\1.q": 12, r"\1.k": 6, r"\1.v": 6}
GROUPED = {r"\1.q": 6, r"\1.k": 3, r"\1.v": 3}


def test_parts_that_are_stacked_are_taken_by_their_names(fused, tmp_path):
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.split(r"(text\.layers\.\d+)\.wqkv", STACKED)
    for layer in (0, 11):
        weight, bias = (fused[f"model.layers.{layer}.wqkv.{kind}"] for kind in ("weight", "bias"))
        v = checkpoint.take(f"text.layers.{layer}.v.weight", 6, 5)  # in any order
        q = checkpoint.take(f"text.layers.{layer}.q.weight", 12, 5)
        k = checkpoint.take(f"text.layers.{layer}.k.weight", 6, 5)
        assert torch.equal(torch.cat([q, k, v]), weight)
        sizes = {"q": 12, "k": 6, "v": 6}
        taken = [checkpoint.take(f"text.layers.{layer}.{n}.bias", sizes[n]) for n in sizes]
        assert torch.equal(torch.cat(taken), bias)
    checkpoint.check_used()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parts_of_each_group_are_gathered(dtype, fused, tmp_path):
    checkpoint = open_checkpoint(tmp_path, dtype)
    checkpoint.split(r"(text\.layers\.\d+)\.wqkv", GROUPED, num_groups=2)
    weight = fused["model.layers.0.wqkv.weight"].to(dtype)
    # InternLM2's own words: "(h gs d)", its queries first, then a key and a value.
    groups = weight.view(2, 4, 3, 5)
    assert torch.equal(
        checkpoint.take("text.layers.0.q.weight", 12, 5), groups[:, :2].reshape(12, 5)
    )
    assert torch.equal(checkpoint.take("text.layers.0.k.weight", 6, 5), groups[:, 2].reshape(6, 5))
    assert torch.equal(checkpoint.take("text.layers.0.v.weight", 6, 5), groups[:, 3].reshape(6, 5))


def test_grouped_rows_are_read_into_a_merged_layer(fused, tmp_path):
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.split(r"(text\.layers\.\d+)\.wqkv", GROUPED, num_groups=2)
    names = [f"text.layers.0.{name}" for name in "qkv"]
    layer = checkpoint.merged_linear(names, 5, (12, 6, 6), bias=True)
    for kind, merged in (("weight", layer.matrix), ("bias", layer.bias)):
        groups = fused[f"model.layers.0.wqkv.{kind}"].unflatten(0, (2, 4, 3))
        q, k, v = groups[:, :2], groups[:, 2], groups[:, 3]
        parts = [q.flatten(0, 2), k.flatten(0, 1), v.flatten(0, 1)]
        assert torch.equal(merged, torch.cat(parts))


def test_a_part_that_is_left_over_is_named_as_it_is_stored(fused, tmp_path):
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.split(r"(text\.layers\.0)\.wqkv", STACKED)
    for name, rows in (("q", 12), ("k", 6)):
        checkpoint.take(f"text.layers.0.{name}.weight", rows, 5)
        checkpoint.take(f"text.layers.0.{name}.bias", rows)
    checkpoint.take("text.layers.0.v.bias", 6)
    with pytest.raises(ModelError, match=r"1 tensors .* the first is 'model\.layers\.0\.wqkv\.wei"):
        checkpoint.check_used("text.layers.11.")


def test_other_rows_than_the_parts_have_together_are_refused(fused, tmp_path):
    with pytest.raises(ModelError, match=r"wqkv.bias' has shape \[24\], .* asks for 20 rows$"):
        open_checkpoint(tmp_path).split(r"(text\.layers\.\d+)\.wqkv", STACKED | {r"\1.q": 8})


def test_a_part_of_another_shape_is_named_with_its_part(fused, tmp_path):
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.split(r"(text\.layers\.\d+)\.wqkv", STACKED)
    with pytest.raises(ModelError, match=r"\[6, 5\] in its part for 'text\.layers\.0\.k\.weight'"):
        checkpoint.take("text.layers.0.k.weight", 12, 5)


def test_a_checkpoint_stored_in_parts_needs_no_split(tmp_path):
    save_file({"model.layers.0.q.weight": torch.ones(2, 2)}, tmp_path / FILE)
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.split(r"(text\.layers\.\d+)\.wqkv", STACKED)
    assert torch.equal(checkpoint.take("text.layers.0.q.weight", 2, 2), torch.ones(2, 2))


def test_parts_and_the_whole_stored_beside_each_other_are_refused(fused, tmp_path):
    save_file(fused | {"model.layers.0.q.weight": torch.ones(12, 5)}, tmp_path / FILE)
    with pytest.raises(ModelError, match="are the same tensor; which one counts"):
        open_checkpoint(tmp_path).split(r"(text\.layers\.\d+)\.wqkv", STACKED)


def test_another_shape_of_the_same_numbers_is_a_view(tmp_path):
    stored = torch.randn(1, 1, 7)
    save_file({"class_embedding": stored}, tmp_path / FILE)
    taken = open_checkpoint(tmp_path).take("class_embedding", 1, 1, 7).view(7)
    assert torch.equal(taken, stored.flatten())
