"""Adapters that PEFT saved, on our layers: logits are those of PEFT's merged model."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config
from safetensors.torch import load_file, save_file

from tests.peft_adapters import LANGUAGE_MODEL, make_adapter, save_adapter
from tests.tiny_llava import CPU, compute_logits, load_tiny_llava, make_tiny_llava
from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.adapters import load_adapters
from vlmflow_engine.models.families.llava import LlavaModel

PROMPT = torch.randint(3, 500, (40,), generator=torch.Generator().manual_seed(0))
A = "base_model.model.model.language_model.layers.1.mlp.down_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")


@pytest.fixture(scope="module")
def loaded(tiny_folder):
    return load_tiny_llava(tiny_folder)


@pytest.fixture
def model(loaded):
    yield loaded
    for linear in loaded.decoder.linears:
        linear.adapters.clear()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An adapter of all linear layers; tests change copies of it."""
    return save_adapter(tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def load(model: LlavaModel, **folders: Path) -> dict[str, bytes]:
    paths = {name: str(folder) for name, folder in folders.items()}
    linears, renames = model.decoder.linears, model.renames
    return load_adapters(paths, linears, renames, dtype=torch.float32, device=CPU)


def edit(
    folder: Path, tensors: dict[str, torch.Tensor | None] | None = None, **fields: Any
) -> None:
    """Change fields of an adapter's config, and its tensors; None takes one out."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    path = folder / "adapter_model.safetensors"
    changed = load_file(path) | (tensors or {})
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, path)


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"r": 1, "lora_alpha": 2},
        {"use_rslora": True},
        {"target_modules": LANGUAGE_MODEL.replace("_proj", "self_attn.k_proj")},
        {"target_modules": r".*language_model.*(up|o)_proj"},
        {"target_modules": ["q_proj", "down_proj"], "exclude_modules": ".*vision.*"},
        {
            "target_modules": ["q_proj", "gate_proj"],
            "layers_to_transform": [1],
            "layers_pattern": "language_model.layers",
        },
        {
            "rank_pattern": {"q_proj": 7, "layers.1.mlp.up_proj": 1},
            "alpha_pattern": {"v_proj": 1, "layers.0.mlp.gate_proj": 30},
        },
        {"rank_pattern": {"q_proj": 7}, "alpha_pattern": {"q_proj": 3}, "use_rslora": True},
    ],
    ids=str,
)
@torch.inference_mode()
def test_logits_are_those_of_merged_weights(tmp_path, model, lora):
    theirs = make_adapter(**lora)
    theirs.save_pretrained(str(tmp_path))
    load(model, red=tmp_path)
    expected = theirs.merge_and_unload()(PROMPT[None]).logits[0]
    (logits,) = compute_logits(model.decoder, [PROMPT], adapter="red")
    torch.testing.assert_close(logits, expected, rtol=0, atol=3e-4)
    (plain,) = compute_logits(model.decoder, [PROMPT])
    assert (logits - plain).abs().max() > 5


@torch.inference_mode()
def test_an_adapter_of_the_language_model_alone_is_taken(tmp_path, model):
    base = make_tiny_llava()
    text_alone = make_adapter(base.model.language_model, target_modules=["q_proj", "up_proj"])
    text_alone.save_pretrained(str(tmp_path))
    load(model, red=tmp_path)
    base.model.language_model = text_alone.merge_and_unload()
    (logits,) = compute_logits(model.decoder, [PROMPT], adapter="red")
    torch.testing.assert_close(logits, base(PROMPT[None]).logits[0], rtol=0, atol=3e-4)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.", ""])
@torch.inference_mode()
def test_the_language_models_other_names_are_known(saved, copy, model, prefix):
    path = copy / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({k.replace("model.language_model.", prefix): v for k, v in tensors.items()}, path)
    edit(copy, target_modules=r".*(self_attn|mlp)\.\w+_proj")
    load(model, red=saved, blue=copy)
    one, two = (compute_logits(model.decoder, [PROMPT], adapter=name) for name in ("red", "blue"))
    assert torch.equal(one[0], two[0])


@torch.inference_mode()
def test_weights_saved_in_bfloat16_are_taken(saved, copy, model):
    tensors = load_file(saved / "adapter_model.safetensors")
    edit(copy, {name: tensor.bfloat16() for name, tensor in tensors.items()})
    load(model, exact=saved, rounded=copy)
    exact, rounded = (
        compute_logits(model.decoder, [PROMPT], adapter=name)[0] for name in ("exact", "rounded")
    )
    assert 0 < (rounded - exact).abs().max() < 2


def test_weights_are_kept_in_the_engines_dtype(saved, model):
    linears, renames = model.decoder.linears, model.renames
    load_adapters({"red": str(saved)}, linears, renames, dtype=torch.bfloat16, device=CPU)
    kept = [linear.adapters["red"] for linear in linears]
    assert {tensor.dtype for item in kept for tensor in (item.a, item.b)} == {torch.bfloat16}


def test_a_digest_names_the_content_and_not_the_name(saved, tmp_path, model):
    names = ("one", "copy", "alpha", "weights")
    folders = {name: shutil.copytree(saved, tmp_path / name) for name in names}
    # One file of each, for the other one alone must not be what tells them apart.
    path = folders["alpha"] / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))
    path = folders["weights"] / "adapter_model.safetensors"
    save_file(load_file(path) | {A: torch.zeros(4, 128)}, path)
    digests = load(model, **folders)
    assert list(digests) == list(folders)
    assert digests["one"] == digests["copy"]
    assert len(set(digests.values())) == 3


def test_the_log_tells_the_memory_of_an_adapter(saved, model, caplog):
    with caplog.at_level(logging.INFO):
        load(model, red=saved)
    num_bytes = sum(linear.adapters["red"].num_bytes for linear in model.decoder.linears)
    assert f"adapter 'red': 14 layers, {num_bytes:,} bytes" in caplog.text


def test_an_adapter_of_the_vision_tower_is_refused(tmp_path, model):
    save_adapter(tmp_path, target_modules=["q_proj", "v_proj"])  # CLIP has layers of these names
    with pytest.raises(ModelError, match="is of the vision tower, but only the linear layers of"):
        load(model, red=tmp_path)


@pytest.mark.parametrize(
    "target, place",
    [("linear_1", "projector"), ("lm_head", "output head"), ("embed_tokens", "embeddings")],
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_an_adapter_of_other_parts_is_refused(tmp_path, model, target, place):
    save_adapter(tmp_path, target_modules=[target])
    with pytest.raises(ModelError, match=f"is of the {place}, but only the linear layers of"):
        load(model, red=tmp_path)


def test_dora_is_refused(tmp_path, model):
    save_adapter(tmp_path, use_dora=True)
    with pytest.raises(ModelError, match="use_dora=True is not supported: only plain LoRA"):
        load(model, red=tmp_path)


def test_another_kind_of_adapter_is_refused(tmp_path, model):
    config = IA3Config(target_modules=LANGUAGE_MODEL, feedforward_modules=[])
    make_adapter(config=config).save_pretrained(str(tmp_path))
    with pytest.raises(ModelError, match="peft_type='IA3' is not supported: only 'LORA' is"):
        load(model, red=tmp_path)


@pytest.mark.parametrize(
    "tensors, fields, reason",
    [
        ({A: torch.zeros(4, 96)}, {}, r"lora_A.* has shape \[4, 96\], but .* ask for \[4, 128\]"),
        ({B: torch.zeros(65, 4)}, {}, r"lora_B.* has shape \[65, 4\], but .* ask for \[64, 4\]"),
        ({}, {"r": 8}, r"has shape \[4, 64\], but .* ask for \[8, 64\]"),
        ({A: None}, {}, r"'model.language_model.layers.1.mlp.down_proj' has no lora_A.weight"),
        ({A: None, B: None}, {}, "layers.1.mlp.down_proj' has no tensor here, but target_modules"),
        ({}, {"target_modules": ["q_proj"]}, "k_proj' has a tensor here, but target_modules"),
        ({A.replace("down", "side"): torch.zeros(1)}, {}, "no linear layer '.*side_proj'; is the"),
        ({A.replace("layers.1", "layers.2"): torch.zeros(1)}, {}, "no linear layer '.*layers.2"),
        ({A.replace("lora_A.", "lora_C."): torch.zeros(1)}, {}, "'.*lora_C.weight' is not one of"),
        ({A.replace("base_model.", ""): torch.zeros(1)}, {}, "is not one of plain LoRA"),
        (
            {A.replace("model.language_model", "language_model.model"): torch.zeros(4, 128)},
            {},
            "are the same layer; which one counts",
        ),
    ],
)  # fmt: skip
def test_tensors_without_a_place_in_the_model_are_refused(copy, model, tensors, fields, reason):
    edit(copy, tensors, **fields)
    with pytest.raises(ModelError, match=reason):
        load(model, red=copy)
    assert not any(linear.adapters for linear in model.decoder.linears)


def test_weights_that_are_no_safetensors_are_refused(copy, model):
    (copy / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        load(model, red=copy)


def test_a_file_without_tensors_is_refused(copy, model):
    save_file({}, copy / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="there is no tensor in it"):
        load(model, red=copy)


def test_weights_in_pickles_are_refused(copy, model):
    path = copy / "adapter_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(ModelError, match="safetensors files only; save the adapter anew with PEFT"):
        load(model, red=copy)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_that_is_not_an_adapter_is_refused(copy, model, name):
    (copy / name).unlink()
    with pytest.raises(ModelError, match=f"no {name} here; an adapter is a folder in PEFT's form"):
        load(model, red=copy)
