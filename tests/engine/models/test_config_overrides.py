"""hf_overrides: what they change, and which are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_llama import generate_texts, save_tiny_llama
from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig
from vlmflow_engine.errors import ConfigError, ModelError
from vlmflow_engine.models.config_overrides import merge
from vlmflow_engine.models.registry import image_format, read_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("tiny_llama"))


@pytest.fixture
def write(llama, tmp_path) -> Callable[..., Path]:
    """Write the tiny Llama's config.json with other fields, and without its rotary ones."""

    def write_config(**fields: Any) -> Path:
        content = json.loads((llama / "config.json").read_text())
        del content["rope_parameters"]
        (tmp_path / "config.json").write_text(json.dumps(content | fields))
        return tmp_path

    return write_config


@pytest.mark.parametrize(
    ("overrides", "theirs"),
    [
        (
            {"rope_theta": 50.0},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0}},
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
        ),
        ({"rms_norm_eps": 0.5}, {"rms_norm_eps": 0.5}),
    ],
    ids=str,
)
def test_answers_are_those_of_transformers_with_the_same_override(overrides, theirs, llama):
    prompts = [[{"role": "user", "content": text}] for text in ("red", "how many blue stars", "at")]
    plain = generate_texts(llama, prompts, 12)
    expected = [answer for _, answer in generate_texts(llama, prompts, 12, **theirs)]
    assert expected != [answer for _, answer in plain]
    config = PytorchEngineConfig(dtype="float32", device_type="cpu", hf_overrides=overrides)
    with Pipeline(str(llama), backend_config=config) as pipeline:
        responses = pipeline(prompts, GenerationConfig(max_new_tokens=12))
    for response, answer in zip(responses, expected, strict=True):
        assert [*response.token_ids, *[2] * (response.finish_reason == "stop")] == answer


def test_a_context_is_never_longer_than_the_model_was_made_for_unless_it_is_told_so(llama, caplog):
    config = {"dtype": "float32", "device_type": "cpu", "session_len": 2000}
    with Pipeline(str(llama), backend_config=PytorchEngineConfig(**config)) as pipeline:
        assert pipeline.info.session_len == 1024
        assert "session_len=2000 exceeds the 1024 positions" in caplog.text
        assert "max_position_embeddings in hf_overrides" in caplog.text
    longer = PytorchEngineConfig(**config, hf_overrides={"max_position_embeddings": 2048})
    with Pipeline(str(llama), backend_config=longer) as pipeline:
        assert pipeline.info.session_len == 2000


def test_nested_fields_are_overridden_and_their_neighbours_stay(tiny_folder):
    plain = read_config(tiny_folder)
    overrides = {"text_config": {"rms_norm_eps": 0.25}, "vision_config": {"layer_norm_eps": 0.5}}
    config = read_config(tiny_folder, overrides)
    assert (config.text_config.rms_norm_eps, config.vision_config.layer_norm_eps) == (0.25, 0.5)
    assert config.text_config.hidden_size == plain.text_config.hidden_size
    assert plain.text_config.rms_norm_eps == 1e-5
    assert overrides == {
        "text_config": {"rms_norm_eps": 0.25},
        "vision_config": {"layer_norm_eps": 0.5},
    }


@pytest.mark.parametrize("name", ["image_token_id", "image_token_index"])
@pytest.mark.parametrize("stored", ["image_token_id", "image_token_index"])
def test_a_field_of_two_names_may_be_called_by_either(name, stored, tiny_folder, tmp_path):
    content = json.loads((tiny_folder / "config.json").read_text())
    content.pop("image_token_index", None)
    content.pop("image_token_id", None)
    (tmp_path / "config.json").write_text(json.dumps(content | {stored: 5}))
    form = image_format(read_config(tmp_path, {name: 7}))
    assert form is not None and form.token_id == 7


OLD_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("stored", "overrides", "expected"),
    [
        ({}, {"rope_theta": 7.0}, {"rope_type": "default", "rope_theta": 7.0}),
        ({"rope_theta": 5.0}, {"rope_theta": 7.0}, {"rope_type": "default", "rope_theta": 7.0}),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
            {"rope_theta": 7.0},
            {"rope_type": "default", "rope_theta": 7.0},
        ),
        (
            {"rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_scaling": {"factor": 3.0}},
            {"rope_type": "linear", "factor": 3.0, "rope_theta": 5.0},
        ),
        (
            {"rope_theta": 5.0, "rope_scaling": OLD_YARN},
            {"rope_scaling": {"type": "linear", "factor": 3.0}},
            {"rope_type": "linear", "factor": 3.0, "rope_theta": 5.0},
        ),
        (
            {"rope_theta": 5.0, "rope_scaling": OLD_YARN},
            {"rope_scaling": None},
            {"rope_type": "default", "rope_theta": 5.0},
        ),
        (
            {"rope_scaling": None},
            {"rope_theta": 7.0},
            {"rope_type": "default", "rope_theta": 7.0},
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
            {"rope_scaling": LLAMA3},
            LLAMA3 | {"rope_theta": 5.0},
        ),
        (
            {"rope_theta": 5.0, "rope_scaling": OLD_YARN},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
            {"rope_type": "default", "rope_theta": 7.0},
        ),
    ],
    ids=str,
)
def test_rotary_parameters_win_in_every_spelling(stored, overrides, expected, write):
    assert read_config(write(**stored), overrides).rope_parameters == expected


def test_what_is_overridden_is_not_changed_itself():
    raw, overrides = {"rope_scaling": {"type": "linear"}}, {"rope_scaling": {"factor": 2.0}}
    merge(raw, overrides)
    assert raw == {"rope_scaling": {"type": "linear"}}
    assert overrides == {"rope_scaling": {"factor": 2.0}}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"rope_tetha": 1e6}, "hf_overrides: 'rope_tetha' is no field of a LlavaConfig"),
        (
            {"max_position_embeddings": 99},
            "'max_position_embeddings' is no field of a LlavaConfig; text_config has one",
        ),
        ({"rope_theta": 99.0}, "'rope_theta' is no field of a LlavaConfig; text_config has one"),
        (
            {"text_config": {"rope_tetha": 1e6}},
            "'text_config.rope_tetha' is no field of a LlamaConfig",
        ),
        (
            {"vision_config": {"rope_theta": 5.0}},
            "'vision_config.rope_theta' is no field of a CLIPVisionConfig",
        ),
        ({"text_config": None}, "text_config must be a dict, got None"),
        ({"text_config": {"rope_scaling": {"facter": 4.0}}}, "'facter' is no parameter of a rot"),
        (
            {"text_config": {"rope_scaling": {"factor": 4.0}}},
            "'factor' has no effect on a rotary embedding that is not scaled; name a rope_type",
        ),
        ({"text_config": {"rope_scaling": 4.0}}, "rope_scaling must be a dict or None, got 4.0"),
    ],
    ids=str,
)
def test_an_override_of_no_field_is_refused(overrides, sentence, tiny_folder):
    with pytest.raises(ConfigError, match=sentence):
        read_config(tiny_folder, overrides)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"text_config": {"hidden_size": "wide"}}, "'hidden_size' expected int, got str"),
        ({"text_config": 5}, "transformers refuses it"),
        ({"model_type": "no_such"}, "transformers knows no model_type 'no_such'"),
        ({"architectures": ["NoSuchModel"]}, "architecture 'NoSuchModel' is not supported"),
        ({"text_config": {"model_type": "gpt2"}}, "language model of type 'gpt2'"),
    ],
    ids=str,
)
def test_an_override_of_a_wrong_value_is_refused(overrides, sentence, tiny_folder):
    with pytest.raises(ModelError, match=sentence) as caught:
        read_config(tiny_folder, overrides)
    assert "\n" not in str(caught.value)
