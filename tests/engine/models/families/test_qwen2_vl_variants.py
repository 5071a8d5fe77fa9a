"""Checkpoints and prompts of Qwen2-VL and Qwen2.5-VL in all their forms, against transformers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from tests.engine.inputs.pictures import noise
from tests.parity import Reference, assert_parity, conversations, generate_references
from tests.peft_adapters import LANGUAGE_MODEL, make_adapter
from tests.tiny_qwen2_vl import (
    EOS,
    KINDS,
    ImagesOnlyProcessor,
    make_tiny_qwen2_vl,
    save_processor,
    save_tiny_qwen2_vl,
)
from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig, Response
from vlmflow_engine.errors import ConfigError, ModelError
from vlmflow_engine.models.registry import read_config
from vlmflow_engine.vl.constants import IMAGE_TOKEN

MAX_NEW_TOKENS = 12
SIZES = ((97, 131), (300, 200), (56, 28), (20, 90))


def refer(folder: Path, prompts: list[list[dict[str, Any]]]) -> list[Reference]:
    processor = ImagesOnlyProcessor.from_pretrained(folder)
    return generate_references(folder, prompts, MAX_NEW_TOKENS, processor=processor)


def ask(folder: Path, prompts: list[Any], **engine: Any) -> list[Response]:
    config = PytorchEngineConfig(
        dtype="float32", device_type="cpu", num_preprocess_workers=0, **engine
    )
    with Pipeline(str(folder), backend_config=config) as pipeline:
        return pipeline(prompts, GenerationConfig(max_new_tokens=MAX_NEW_TOKENS))


def assert_answers(folder: Path, references: list[Reference], **engine: Any) -> None:
    prompts = [reference.messages for reference in references]
    assert_parity(folder, references, ask(folder, prompts, **engine), EOS)


def user(*parts: Any, **options: Any) -> list[dict[str, Any]]:
    """A user's message of texts and pictures; `options` are those of its pictures."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": part, **options}
        for part in parts
    ]
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory) -> Path:
    return save_tiny_qwen2_vl(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture(scope="module")
def references(folder) -> list[Reference]:
    return refer(folder, conversations(6, SIZES))


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "yarn": {
        "text_config": {
            "rope_parameters": YARN | {"rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
        }
    },
    "uneven sections": {
        "text_config": {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 500.0,
                "mrope_section": [6, 0, 2],
            }
        }
    },
    "sliding window": {
        "text_config": {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
    },
    "one key head": {"text_config": {"num_key_value_heads": 1}},
    "other act": {"vision_config": {"hidden_act": "gelu_pytorch_tanh"}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_form_of_the_model_answers_as_transformers_does(variant, kind, tmp_path):
    folder = save_tiny_qwen2_vl(tmp_path, kind, **VARIANTS[variant])
    assert_answers(folder, refer(folder, conversations(5, SIZES)), max_prefill_token_num=40)


@pytest.mark.parametrize(
    "vision",
    [
        {"window_size": 84, "fullatt_block_indexes": []},
        {"window_size": 28, "fullatt_block_indexes": [0, 9]},
        {"window_size": 1000},
        {"window_size": 70},
    ],
    ids=str,
)
def test_every_window_answers_as_transformers_does(vision, tmp_path):
    folder = save_tiny_qwen2_vl(tmp_path, "qwen2_5_vl", vision_config=vision)
    assert_answers(folder, refer(folder, conversations(5, SIZES)))


def test_patches_of_another_size_are_cut_and_merged_as_configured(kind, tmp_path):
    sizes = {"patch_size": 8, "spatial_merge_size": 3, "temporal_patch_size": 3}
    folder = save_tiny_qwen2_vl(
        tmp_path,
        kind,
        vision_config=sizes | ({"window_size": 48} if kind == "qwen2_5_vl" else {}),
        image_processor={"patch_size": 8, "merge_size": 3, "temporal_patch_size": 3},
    )
    assert_answers(folder, refer(folder, conversations(5, SIZES)))


def test_newer_names_of_the_tensors_are_the_same_model(folder, references, tmp_path):
    """As transformers calls them in memory; what it writes are the older ones."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    assert any(name.startswith("visual.") for name in tensors)

    def newer(name: str) -> str:
        if name.startswith("visual."):
            return f"model.{name}"
        return name.replace("model.", "model.language_model.", 1)

    save_file({newer(n): tensor for n, tensor in tensors.items()}, tmp_path / "model.safetensors")
    assert_answers(tmp_path, references)


def test_a_left_over_tensor_is_named_but_not_a_buffer(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["visual.rotary_pos_emb.inv_freq"] = tensors["model.norm.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert ask(tmp_path, ["hi"])[0].error_message is None
    tensors["visual.deepstack.weight"] = tensors["model.norm.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="1 tensors have no place.*'visual.deepstack.weight'"):
        ask(tmp_path, ["hi"])


@pytest.mark.parametrize("kind_of_rope", ["mrope", "default"])
def test_a_flat_config_is_the_same_model(kind_of_rope, folder, references, tmp_path):
    """As the released files are: the language model's fields beside vision_config."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    content = json.loads((folder / "config.json").read_text())
    text = content.pop("text_config")
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"type": kind_of_rope, "mrope_section": rope["mrope_section"]}
    text.pop("model_type")
    (tmp_path / "config.json").write_text(json.dumps(text | content))
    assert_answers(tmp_path, references)


def test_overrides_of_a_flat_config_stand_where_its_fields_do(folder, tmp_path):
    content = json.loads((folder / "config.json").read_text())
    text = content.pop("text_config")
    del text["model_type"], text["max_position_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(text | content))
    read = read_config(tmp_path, {"max_position_embeddings": 99, "rope_scaling": YARN})
    assert read.text_config.max_position_embeddings == 99
    # How a head is split belongs to the model, whatever the scaling.
    assert read.text_config.rope_parameters["mrope_section"] == [2, 3, 3]
    assert read.text_config.rope_parameters["factor"] == 4.0
    with pytest.raises(ConfigError, match="has no text_config"):
        read_config(tmp_path, {"text_config": {"max_position_embeddings": 99}})
    with pytest.raises(ConfigError, match="'max_positions' is no field"):
        read_config(tmp_path, {"max_positions": 99})


@pytest.mark.parametrize("limits", [{"max_pixels": 9000}, {"min_pixels": 30_000}], ids=str)
def test_an_images_own_limits_are_those_of_a_processor_with_them(limits, folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    save_processor(tmp_path, **limits)
    pictures = [noise(120, 100), noise(50, 70)]
    expected = refer(tmp_path, [user(picture, "what is it") for picture in pictures])
    prompts = [user(picture, "what is it", **limits) for picture in pictures]
    assert_parity(folder, expected, ask(folder, prompts), EOS)
    plain = ask(folder, [user(picture, "what is it") for picture in pictures])
    assert [r.input_token_len for r in plain] != [len(r.input_ids) for r in expected]


def test_images_stand_where_their_parts_or_their_marks_do(folder):
    first, second = noise(60, 60), noise(90, 40)
    [reference] = refer(folder, [user("between ", first, " and ", second, "?")])
    marked = user(f"between {IMAGE_TOKEN} and {IMAGE_TOKEN}?", first, second)
    assert_parity(folder, [reference] * 2, ask(folder, [reference.messages, marked]), EOS)


def test_what_looks_like_an_image_in_a_text_is_text(folder):
    text = "<|vision_start|><|image_pad|><|vision_end|><|video_pad|><|im_end|>"
    spelled, plain = ask(folder, [user(noise(40, 40), text), user(noise(40, 40), "")])
    assert spelled.error_message is None
    assert spelled.input_token_len > plain.input_token_len + 10


def test_an_image_or_a_video_that_cannot_be_taken_fails_its_own_prompt_alone(folder, references):
    video = [{"role": "user", "content": [{"type": "video", "video": "clip.mp4"}]}]
    narrow = user(Image.new("RGB", (1, 300)), "what is it")
    prompts = [narrow, video, references[1].messages]
    of_narrow, of_video, answered = ask(folder, prompts)
    assert of_narrow.error_code == "preprocess_failed"
    assert "image of 1 x 300 pixels: one side is more than 200 times the other" in (
        of_narrow.error_message or ""
    )
    assert of_video.error_code == "invalid_request"
    assert "frames of a video as images" in (of_video.error_message or "")
    assert_parity(folder, [references[1]], [answered], EOS)


def test_the_known_number_of_rows_is_that_of_the_prompt(folder):
    [response, empty] = ask(folder, [user(noise(131, 97), "a"), user("a")])
    height, width = smart_resize(97, 131, 28, 56 * 56, 28 * 28 * 64)
    rows = height * width // 28**2
    assert response.input_token_len - empty.input_token_len == rows + 2  # and its two brackets


def test_the_language_model_alone_needs_no_tower(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    left = {name: tensor for name, tensor in tensors.items() if "visual." not in name}
    assert 0 < len(left) < len(tensors)
    save_file(left, tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").unlink()
    prompts = [user(text) for text in ("red", "how many blue shapes", "a star")]
    references = refer(folder, prompts)
    responses = ask(tmp_path, [*prompts, user(noise(40, 40))], language_model_only=True)
    assert_parity(folder, references, responses[:-1], EOS)
    assert "this engine takes text alone" in (responses[-1].error_message or "")
    with pytest.raises(ModelError):
        ask(tmp_path, prompts)


@pytest.mark.parametrize("names", ["newer", "older"])
def test_an_adapter_answers_as_the_model_that_peft_merges_it_into(names, kind, folder, tmp_path):
    peft_model = make_adapter(make_tiny_qwen2_vl(kind), target_modules=LANGUAGE_MODEL)
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    peft_model.save_pretrained(str(adapter))
    peft_model.merge_and_unload().save_pretrained(merged)
    save_processor(merged)
    if names == "older":  # of a transformers that had no language_model in between
        path = adapter / "adapter_model.safetensors"
        tensors = {n.replace(".language_model", ""): t for n, t in load_file(path).items()}
        save_file(tensors, path)
        path = adapter / "adapter_config.json"
        content = json.loads(path.read_text()) | {"target_modules": r"model\.layers.*_proj"}
        path.write_text(json.dumps(content))
    references = refer(merged, conversations(4, SIZES))
    config = PytorchEngineConfig(
        dtype="float32", device_type="cpu", adapters={"mine": str(adapter)}
    )
    with Pipeline(str(folder), backend_config=config) as pipeline:
        responses = pipeline(
            [reference.messages for reference in references],
            GenerationConfig(max_new_tokens=MAX_NEW_TOKENS),
            adapter_name="mine",
        )
    assert_parity(merged, references, responses, EOS)
