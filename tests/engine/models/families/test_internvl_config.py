"""A config in Hugging Face form is read with transformers' defaults, or refused in a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import InternVLConfig

from tests.tiny_internvl import make_internvl
from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.registry import image_format, read_config, text_config


@pytest.fixture(scope="module")
def complete() -> dict[str, Any]:
    content = make_internvl().config.to_dict()
    return {**content, "architectures": ["InternVLForConditionalGeneration"]}


def test_a_sparse_config_gets_transformers_defaults(tmp_path):
    config, theirs = _read(tmp_path, {}), InternVLConfig()
    for ours, defaults in (
        (config.vision_config, theirs.vision_config),
        (text_config(config), theirs.text_config),
    ):
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            assert getattr(ours, name) == getattr(defaults, name)
    form = image_format(config)
    assert (form.token_id, form.parameters) == (151667, {"patch_size": 14, "shuffle_factor": 2})
    assert (form.first_token, form.last_token) == ("<img>", "</img>")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"downsample_ratio": 0.3}, "downsample_ratio must be 1, 0.5 or 0.25, got 0.3"),
        ({"vision_feature_layer": [-1, -2]}, "vision_feature_layer [-1, -2] does not exist"),
        ({"vision_feature_select_strategy": "full"}, "must be 'default', got 'full'"),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "'clip_vision_model' is not"),
        ({"vision_config": {"use_mean_pooling": False}}, "use_mean_pooling must be True, got Fal"),
        ({"vision_config": {"patch_size": [14, 7]}}, "patch_size must be a square"),
        ({"text_config": {"model_type": "no_such_type"}}, "transformers refuses it"),
    ],
    ids=str,
)
def test_what_cannot_be_is_named(fields, sentence, complete, tmp_path):
    for name, value in fields.items():
        if isinstance(value, dict) and "model_type" not in value:
            fields = {**fields, name: complete[name] | value}
    with pytest.raises(ModelError) as error:
        _read(tmp_path, complete | fields)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


_VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from(["gelu", "rms_norm", "full", 0.25, 1 << 70])
    | st.lists(st.integers(0, 60), max_size=3)
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_config_is_read_or_refused_in_one_sentence(data, complete, tmp_path):
    content = json.loads(json.dumps(complete))
    for section in data.draw(st.sets(st.sampled_from(["", "vision_config", "text_config"]))):
        part = content[section] if section else content
        names = sorted(part.keys() - {"architectures", "text_config", "vision_config"})
        for name in data.draw(st.sets(st.sampled_from(names), max_size=5)):
            if data.draw(st.booleans()):
                del part[name]
            else:
                part[name] = data.draw(_VALUES)
    try:
        config = _read(tmp_path, content)
        assert image_format(config).parameters["patch_size"] >= 1
        assert text_config(config).num_attention_heads >= 1
    except ModelError as error:
        assert "\n" not in str(error)
        assert str(error).strip()


def _read(folder: Path, content: dict[str, Any]) -> Any:
    whole = {"architectures": ["InternVLForConditionalGeneration"], "model_type": "internvl"}
    (folder / "config.json").write_text(json.dumps(whole | content))
    return read_config(folder)
