"""Checkpoints: where tensors are found, under which names, and what is said when one is not."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny_llava import CPU, compute_logits, load_tiny_llava, make_tiny_llava, save_tiny_llava
from vlmflow_engine.errors import ModelError
from vlmflow_engine.layers.linear import Linear
from vlmflow_engine.models.families.llava import RENAMES, LlavaModel
from vlmflow_engine.models.family import ImagePixels
from vlmflow_engine.models.weights import Checkpoint

Tensors = dict[str, Tensor]

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEAD = "language_model.lm_head.weight"
GATE = "language_model.model.layers.1.mlp.gate_proj.weight"


@pytest.fixture
def tensors(tiny_folder) -> Tensors:
    """The tiny checkpoint's, under the names that transformers 5 writes."""
    return load_file(tiny_folder / FILE)


@pytest.fixture
def write(tiny_folder, tmp_path) -> Callable[[Tensors], Path]:
    """Write a checkpoint of the tiny model's config and of given tensors."""

    def write_checkpoint(tensors: Tensors) -> Path:
        (tmp_path / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
        save_file(tensors, tmp_path / FILE)
        return tmp_path

    return write_checkpoint


def open_checkpoint(folder: Path, dtype: torch.dtype = torch.float32) -> Checkpoint:
    return Checkpoint(folder, RENAMES, dtype=dtype, device=CPU)


def load_error(folder: Path) -> str:
    """The one sentence that loading a broken checkpoint ends with."""
    with pytest.raises(ModelError) as caught:
        load_tiny_llava(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


@torch.inference_mode()
def outputs(model: LlavaModel) -> list[Tensor]:
    """What a model makes of a picture and of a prompt."""
    generator = torch.Generator().manual_seed(0)
    side = model.vision.tower.image_size
    pixels = torch.randn(1, 3, side, side, generator=generator)
    prompt = torch.randint(model.decoder.vocab_size, (9,), generator=generator)
    image = ImagePixels(pixels, ())
    return [*model.encode_images([image]), *compute_logits(model.decoder, [prompt])]


@pytest.fixture(scope="module")
def assert_tiny(tiny_folder) -> Callable[[Path], None]:
    """Assert that a folder holds the tiny model: every tensor has a part in the outputs."""
    expected = outputs(load_tiny_llava(tiny_folder))

    def assert_equal(folder: Path) -> None:
        actual = outputs(load_tiny_llava(folder))
        assert all(map(torch.equal, actual, expected))

    return assert_equal


def renamed(tensors: Tensors, *renames: tuple[str, str]) -> Tensors:
    result = {}
    for name, tensor in tensors.items():
        for pattern, replacement in renames:
            name, count = re.subn(f"^{pattern}", replacement, name)
            if count:
                break
        result[name] = tensor
    return result


def drop(tensors: Tensors, pattern: str) -> Tensors:
    left = {name: tensor for name, tensor in tensors.items() if not re.search(pattern, name)}
    assert len(left) < len(tensors)
    return left


# From what transformers 5 writes, language_model.model.* and vision_tower.encoder.*.
NEW_TEXT = (
    (r"language_model\.lm_head", "lm_head"),
    (r"language_model\.model", "model.language_model"),
    (r"multi_modal_projector", "model.multi_modal_projector"),
)


@pytest.mark.parametrize(
    "renames",
    [
        (),
        ((r"vision_tower\.", "vision_tower.vision_model."),),
        (*NEW_TEXT, (r"vision_tower\.", "model.vision_tower.")),
        (*NEW_TEXT, (r"vision_tower\.", "model.vision_tower.vision_model.")),
    ],
    ids=["old_text", "old_text_vision_model", "new_text", "new_text_vision_model"],
)
def test_every_generation_of_names_loads_the_same_model(renames, tensors, write, assert_tiny):
    assert_tiny(write(renamed(tensors, *renames)))


def test_shards_load_as_one_file_does(tmp_path, assert_tiny):
    make_tiny_llava().save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert_tiny(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    make_tiny_llava().save_pretrained(tmp_path, max_shard_size="100KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[2]
    shard.unlink()
    assert load_error(tmp_path).startswith(f"{tmp_path}: {shard.name} is missing")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_named(content, tensors, write):
    folder = write(tensors)
    (folder / FILE).unlink()
    (folder / INDEX).write_text(content)
    assert str(folder / INDEX) in load_error(folder)


def test_a_folder_without_weights_is_told_what_is_sought(tensors, write):
    folder = write(tensors)
    (folder / FILE).rename(folder / "consolidated.safetensors")
    torch.save(tensors, folder / "training_args.bin")
    assert load_error(folder) == (
        f"{folder}: there are no weights here: neither model.safetensors, nor "
        "model.safetensors.index.json with its files, nor the same of pytorch_model.bin"
    )


@pytest.mark.parametrize(
    ("length", "tail"),
    [(-1, b""), (100, b""), (0, b""), (0, b"<html>not found</html>")],
    ids=["last_byte_missing", "cut_in_the_header", "empty", "html"],
)
def test_a_corrupt_file_is_named(length, tail, tensors, write):
    path = write(tensors) / FILE
    path.write_bytes(path.read_bytes()[:length] + tail)
    assert load_error(path.parent).startswith(f"{path}: cannot be read as safetensors: ")


@pytest.mark.parametrize(
    ("lost", "ours"),
    [
        (GATE, "text.layers.1.mlp.gate_proj.weight"),
        (HEAD, "lm_head.weight"),
        ("multi_modal_projector.linear_2.bias", "projector.linear_2.bias"),
        (
            "vision_tower.encoder.layers.0.self_attn.k_proj.bias",
            "vision.encoder.layers.0.self_attn.k_proj.bias",
        ),
    ],
)
def test_a_missing_tensor_is_named(lost, ours, tensors, write):
    del tensors[lost]
    folder = write(tensors)
    message = load_error(folder)
    assert message.startswith(f"{folder / FILE}: there is no tensor for {ours!r}")


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tensors, write):
    tensors[GATE] = torch.zeros(64, 128)
    folder = write(tensors)
    assert load_error(folder) == (
        f"{folder / FILE}: tensor {GATE!r} has shape [64, 128], but config.json asks for [128, 64]"
    )


@pytest.mark.parametrize(
    "extra",
    [
        "language_model.model.layers.2.mlp.gate_proj.weight",  # a layer that config.json denies
        "language_model.model.layers.0.self_attn.q_proj.bias",
        "vision_tower.encoder.layers.0.self_attn.q_norm.weight",
        "image_newline",
    ],
)
def test_a_left_over_tensor_is_named(extra, tensors, write):
    tensors[extra] = torch.zeros(3)
    folder = write(tensors)
    message = load_error(folder)
    assert message.startswith(f"{folder / FILE}: ")
    assert repr(extra) in message


def test_layers_behind_the_features_are_not_asked_for(tensors, write, assert_tiny):
    # The tiny tower has three layers; its features are taken after the second.
    folder = write(drop(tensors, r"vision_tower\.(encoder\.layers\.2|post_layernorm)\."))
    assert_tiny(folder)


@pytest.mark.parametrize(
    "buffer",
    [
        "language_model.model.rotary_emb.inv_freq",
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
        "vision_tower.vision_model.embeddings.position_ids",
    ],
)
def test_buffers_of_old_checkpoints_are_ignored(buffer, tensors, write, assert_tiny):
    tensors[buffer] = torch.arange(5)
    assert_tiny(write(tensors))


@pytest.mark.parametrize(
    "tie",
    [{"text_config": {"tie_word_embeddings": True}}, {"tie_word_embeddings": True}],
    ids=["said_by_the_text_config", "said_at_the_top"],
)
def test_a_tied_head_left_out_is_the_embedding(tie, tmp_path):
    folder = save_tiny_llava(tmp_path, **tie)
    assert HEAD not in load_file(folder / FILE)
    decoder = load_tiny_llava(folder).decoder
    assert torch.equal(decoder.lm_head.matrix, decoder.embedding)


def test_a_tied_head_that_is_stored_has_its_place(tmp_path):
    folder = save_tiny_llava(tmp_path, text_config={"tie_word_embeddings": True})
    tensors = load_file(folder / FILE)
    tensors[HEAD] = tensors["language_model.model.embed_tokens.weight"].clone()
    save_file(tensors, folder / FILE)
    decoder = load_tiny_llava(folder).decoder
    assert torch.equal(decoder.lm_head.matrix, decoder.embedding)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("asked", [torch.bfloat16, torch.float32], ids=str)
def test_tensors_come_in_the_dtype_asked_for(stored, asked, tmp_path):
    weight = torch.linspace(-1, 1, 6).reshape(2, 3).to(stored)
    save_file({"a.weight": weight}, tmp_path / FILE)
    taken = open_checkpoint(tmp_path, asked).take("a.weight", 2, 3)
    assert taken.dtype == asked
    assert torch.equal(taken, weight.to(asked))


def test_a_tensor_taken_is_no_longer_in_the_checkpoint(tmp_path):
    save_file({"a.weight": torch.zeros(2), "b.weight": torch.zeros(2)}, tmp_path / FILE)
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.take("a.weight", 2)
    assert "a.weight" not in checkpoint
    assert "b.weight" in checkpoint


def test_only_ignored_prefixes_may_be_left_over(tmp_path):
    save_file({"a.weight": torch.zeros(2), "b.weight": torch.zeros(2)}, tmp_path / FILE)
    open_checkpoint(tmp_path).check_used("a.", "b.")
    with pytest.raises(ModelError, match="1 tensors have no place in the model.*'b.weight'"):
        open_checkpoint(tmp_path).check_used("a.")


def test_layers_that_share_their_input_are_read_as_one(tmp_path):
    tensors = {
        f"{name}.{kind}": torch.randn(n, 3)[:, : None if kind == "weight" else 1].squeeze(1)
        for name, n in (("q", 4), ("k", 2), ("v", 2))
        for kind in ("weight", "bias")
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / FILE)
    names = ("q", "k", "v")
    checkpoint = open_checkpoint(tmp_path)
    merged = checkpoint.merged_linear(names, 3, (4, 2, 2), bias=True)
    checkpoint.check_used()
    expected = Linear.merged(
        [
            open_checkpoint(tmp_path).linear(name, 3, n, bias=True)
            for name, n in (("q", 4), ("k", 2), ("v", 2))
        ]
    )
    assert torch.equal(merged.matrix, expected.matrix)
    assert torch.equal(merged.bias, expected.bias)
    assert torch.equal(merged.matrix, torch.cat([tensors[f"{name}.weight"] for name in names]))
    assert merged.parts == expected.parts == [("q", 4), ("k", 2), ("v", 2)]
