"""From a folder to a model: which checkpoints are taken, and what an image is made of."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from tests.tiny_llava import load_tiny_llava, save_tiny_llava
from vlmflow_engine.errors import ModelError
from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.models.families.generic import GenericFamily
from vlmflow_engine.models.families.llava import LlavaFamily
from vlmflow_engine.models.family import ImagePixels
from vlmflow_engine.models.registry import (
    FAMILIES,
    eos_token_ids,
    family_of,
    image_format,
    read_config,
)

SUPPORTED = (
    ", ".join(name for family in FAMILIES for name in family.architectures)
    + ", and what transformers itself can load as AutoModelForImageTextToText"
)
PIXELS = torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def write(tiny_folder, tmp_path) -> Callable[..., Path]:
    """Write the tiny model's config.json with other fields into a folder."""

    def write_config(**fields: Any) -> Path:
        content = json.loads((tiny_folder / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(content | fields))
        return tmp_path

    return write_config


def config_error(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_config(folder)
    return str(caught.value)


def test_a_folder_without_config_is_refused(tmp_path):
    assert config_error(tmp_path).startswith(f"{tmp_path}: no config.json here")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"architectures": ', b"\xff\xfe\x00", b"[]", b'"llava"', b"null"],
    ids=repr,
)
def test_a_config_that_is_no_json_object_is_named(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert config_error(tmp_path).startswith(f"{path}: ")


def test_an_unknown_architecture_is_refused_with_those_that_are_known(write):
    folder = write(architectures=["EvilForCausalLM"])
    assert config_error(folder) == (
        f"{folder / 'config.json'}: architecture 'EvilForCausalLM' is not supported; "
        f"supported are {SUPPORTED}"
    )


@pytest.mark.parametrize("named", ["GPT2LMHeadModel", "AyaVisionForConditionalGeneration"])
def test_an_architecture_of_another_model_type_is_refused(named, write):
    folder = write(architectures=[named])
    reason = (
        f"model_type 'llava' makes a LlavaForConditionalGeneration of transformers, and no {named}"
    )
    if named == "GPT2LMHeadModel":  # a class for text alone
        reason = "transformers cannot build it: "
    assert reason in config_error(folder)


@pytest.mark.parametrize("architectures", [[], None])
def test_a_config_without_architectures_is_told_apart_from_an_unknown_one(architectures, write):
    folder = write(architectures=architectures)
    assert config_error(folder) == (
        f"{folder / 'config.json'} names no architectures (its model_type is 'llava'); "
        f"supported are {SUPPORTED}"
    )


def test_a_quantised_checkpoint_is_refused(write):
    folder = write(quantization_config={"quant_method": "awq", "bits": 4})
    assert "the weights are quantised (AWQ), and none" in config_error(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "no_such_model"},
        {"text_config": {"model_type": "no_such_model"}},
        {"text_config": {"model_type": "llama", "hidden_size": "wide"}},
        {"text_config": {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 3}},
        {"vision_feature_select_strategy": "half"},
    ],
    ids=str,
)
def test_a_config_that_transformers_refuses_is_named(fields, write):
    folder = write(**fields)
    assert config_error(folder).startswith(f"{folder / 'config.json'}: ")


@pytest.mark.parametrize("model_type", ["llava", "no_such_model"])
def test_code_in_a_checkpoint_is_never_run(model_type, write):
    folder = write(
        model_type=model_type,
        auto_map={
            "AutoConfig": "evil.EvilConfig",
            "AutoModel": "evil.EvilModel",
            "AutoModelForImageTextToText": "evil.EvilModel",
        },
    )
    marker = folder / "was_here"
    (folder / "evil.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlavaConfig\n"
        f"Path({str(marker)!r}).touch()\n"
        "class EvilConfig(LlavaConfig):\n"
        "    model_type = 'no_such_model'\n"
        "class EvilModel: pass\n"
    )
    if model_type == "llava":
        assert type(read_config(folder)).__module__.startswith("transformers.models.llava.")
    else:
        config_error(folder)
    assert not marker.exists()


def test_a_tower_of_another_kind_runs_through_the_code_of_transformers(write, caplog):
    config = read_config(write(vision_config={"model_type": "siglip_vision_model"}))
    assert isinstance(family_of(config), GenericFamily)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "LlavaForConditionalGeneration runs through transformers' own code" in record.message
    assert "slower" in record.message


def test_a_decoder_that_nobody_can_page_is_refused_with_both_reasons(write):
    message = config_error(write(text_config={"model_type": "gpt_oss"}))
    assert "a language model of type 'gpt_oss' is not supported yet" in message
    assert "LlavaForConditionalGeneration cannot run through transformers' own code" in message


def test_a_family_of_our_own_says_nothing_in_the_log(write, caplog):
    assert isinstance(family_of(read_config(write())), LlavaFamily)
    assert not caplog.records


def assert_images_are_encoded_as_by_transformers(folder: Path) -> None:
    theirs = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        images = [ImagePixels(image[None], ()) for image in PIXELS]
        actual = torch.stack(load_tiny_llava(folder).encode_images(images))
        expected = torch.stack(theirs.get_image_features(PIXELS).pooler_output)
    atol = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)
    assert actual.shape[1] == image_format(read_config(folder)).parameters["num_rows"]


@pytest.mark.parametrize(
    ("strategy", "layer"),
    [("default", layer) for layer in (-4, -2, -1, 1, 3, [0], [-2], [-2, -1], [1, -1, 0])]
    + [("full", layer) for layer in (-2, 3, [-2, -1])],
    ids=str,
)
def test_image_embeddings_are_those_of_transformers(strategy, layer, tmp_path):
    folder = save_tiny_llava(
        tmp_path, vision_feature_layer=layer, vision_feature_select_strategy=strategy
    )
    assert_images_are_encoded_as_by_transformers(folder)


@pytest.mark.parametrize(
    "overrides",
    [
        {"multimodal_projector_bias": False},
        {"projector_hidden_act": "relu"},
        {"vision_config": {"hidden_act": "gelu", "layer_norm_eps": 0.1}},
        {"vision_config": {"num_attention_heads": 8, "intermediate_size": 40}},
    ],
    ids=str,
)
def test_tower_and_projector_are_those_of_the_config(overrides, tmp_path):
    assert_images_are_encoded_as_by_transformers(save_tiny_llava(tmp_path, **overrides))


@pytest.mark.parametrize("layer", [4, -5, [-2, 4]], ids=str)
def test_a_feature_layer_that_the_tower_lacks_is_refused(layer, tiny_folder, write):
    folder = write(vision_feature_layer=layer)
    (folder / "model.safetensors").write_bytes((tiny_folder / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match="does not exist in a tower of 3 layers"):
        load_tiny_llava(folder)


@pytest.mark.parametrize(("strategy", "num_rows"), [("default", 36), ("full", 37)])
def test_an_image_takes_one_row_a_patch_and_one_for_a_kept_class_token(strategy, num_rows, write):
    folder = write(vision_feature_select_strategy=strategy, image_token_index=7)
    assert image_format(read_config(folder)) == ImageFormat(
        token_id=7, processor="clip", parameters={"side": 96, "num_rows": num_rows}
    )


@pytest.mark.parametrize(
    ("generation", "text", "expected"),
    [
        (None, 2, {2}),
        (None, [2, 5], {2, 5}),
        (None, None, set()),
        ({}, 2, {2}),
        ({"eos_token_id": 9}, None, {9}),
        ({"eos_token_id": [9, 11]}, 2, {9, 11}),
        ({"eos_token_id": 0}, None, {0}),
    ],
)
def test_an_answer_ends_where_transformers_would_end_it(generation, text, expected, write):
    folder = write(text_config={"model_type": "llama", "eos_token_id": text})
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    assert eos_token_ids(folder, read_config(folder)) == expected


def test_a_broken_generation_config_is_named(write):
    folder = write()
    path = folder / "generation_config.json"
    path.write_text("{")
    with pytest.raises(ModelError, match=re.escape(str(path))):
        eos_token_ids(folder, read_config(folder))
