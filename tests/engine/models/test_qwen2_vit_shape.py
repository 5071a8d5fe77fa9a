"""What a tower is built of is read from either version's config, and nonsense is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiny_qwen2_vl import KINDS, TEXT_CONFIG, VISION_CONFIGS
from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.qwen2_vit_shape import VitShape, read_shape
from vlmflow_engine.models.registry import image_format, read_config

ARCHITECTURES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
}


def write(folder: Path, kind: str, **fields: Any) -> Path:
    base = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "text_config": TEXT_CONFIG,
        "vision_config": VISION_CONFIGS[kind],
    }
    for part in ("text_config", "vision_config"):
        if isinstance(fields.get(part), dict):
            fields[part] = base[part] | fields[part]
    (folder / "config.json").write_text(json.dumps(base | fields))
    return folder


def test_the_released_sizes_of_qwen2_5_vl_are_read_from_a_flat_file(tmp_path):
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "num_hidden_layers": 36,
        "tie_word_embeddings": True,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "eos_token_id": 151645,
        "image_token_id": 151655,
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "in_chans": 3,
            "out_hidden_size": 2048,
            "spatial_patch_size": 14,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = read_config(tmp_path)
    assert read_shape(read) == VitShape(
        depth=32,
        width=1280,
        inner=3420,
        num_heads=16,
        out=2048,
        patch_size=14,
        frames=2,
        merge_size=2,
        rope_theta=10000.0,
        act="silu",
        is_gated=True,
        window=4,
        full_layers=frozenset({7, 15, 23, 31}),
    )
    text = read.text_config
    assert (text.hidden_size, text.num_hidden_layers, text.tie_word_embeddings) == (2048, 36, True)
    assert text.rope_parameters["mrope_section"] == [16, 24, 24]
    assert image_format(read).token_id == 151655


def test_the_released_sizes_of_qwen2_vl_are_transformers_defaults(tmp_path):
    fields = {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4}
    config = {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl"}
    (tmp_path / "config.json").write_text(json.dumps(config | fields))
    read = read_config(tmp_path)
    assert read_shape(read) == VitShape(
        depth=32,
        width=1280,
        inner=5120,
        num_heads=16,
        out=3584,
        patch_size=14,
        frames=2,
        merge_size=2,
        rope_theta=10000.0,
        act="quick_gelu",
        is_gated=False,
        window=None,
        full_layers=frozenset(),
    )
    # As transformers' own code has it for a file that names none.
    assert read.text_config.rope_parameters["mrope_section"] == [16, 24, 24]


VISION_NONSENSE: dict[str, Any] = {
    "depth": 0,
    "patch_size": [14, 14],
    "spatial_merge_size": 0,
    "temporal_patch_size": [2, 2],
    "num_heads": 3,
    "in_channels": 4,
    "hidden_act": "no_such_act",
    "rope_parameters": {"rope_theta": "x"},
    "model_type": "siglip_vision_model",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", VISION_NONSENSE)
def test_nonsense_about_the_tower_is_one_sentence(name, kind, tmp_path):
    write(tmp_path, kind, vision_config={name: VISION_NONSENSE[name]})
    assert_refused(tmp_path)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("qwen2_vl", {"vision_config": {"embed_dim": 36, "num_heads": 6}}),
        ("qwen2_vl", {"vision_config": {"hidden_size": 32}}),
        ("qwen2_vl", {"vision_config": {"mlp_ratio": 0}}),
        ("qwen2_vl", {"vision_config": {"rope_parameters": {"rope_type": "yarn"}}}),
        ("qwen2_5_vl", {"vision_config": {"out_hidden_size": 32}}),
        ("qwen2_5_vl", {"vision_config": {"intermediate_size": -1}}),
        ("qwen2_5_vl", {"vision_config": {"window_size": 27}}),
        ("qwen2_5_vl", {"vision_config": {"fullatt_block_indexes": 7}}),
        ("qwen2_5_vl", {"vision_config": 7}),
        ("qwen2_5_vl", {"text_config": {"model_type": "no_such_type"}}),
        ("qwen2_5_vl", {"text_config": {"num_attention_heads": 0}}),
        ("qwen2_5_vl", {"text_config": {"num_attention_heads": 3}}),
        ("qwen2_5_vl", {"text_config": {"num_key_value_heads": 3}}),
        ("qwen2_vl", {"text_config": {"hidden_size": 0}}),
        ("qwen2_vl", {"image_token_id": None}),
        *[
            ("qwen2_vl", {"text_config": {"rope_parameters": {"mrope_section": sections}}})
            for sections in ([2, 3, 4], [8], 8, "abc", [-1, 8, 1], [2.0, 3.0, 3.0], [[2], 3, 3])
        ],
        ("qwen2_vl", {"text_config": {"rope_parameters": {"rope_type": "no_such_type"}}}),
    ],
    ids=str,
)
def test_nonsense_is_one_sentence(kind, fields, tmp_path):
    write(tmp_path, kind, **fields)
    assert_refused(tmp_path)


def assert_refused(folder: Path) -> None:
    with pytest.raises(ModelError) as caught:
        config = read_config(folder)
        assert config is None, "it was taken"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=4),
    st.lists(st.integers(-1, 40), max_size=4),
    st.dictionaries(st.sampled_from(["rope_type", "mrope_section", "type"]), st.integers()),
)
TEXT_NAMES = [*TEXT_CONFIG, "tie_word_embeddings", "sliding_window", "layer_types", "model_type"]


@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), kind=st.sampled_from(KINDS), is_flat=st.booleans())
def test_whatever_a_config_says_it_is_read_or_refused(data, kind, is_flat, tmp_path):
    names = st.sampled_from([*VISION_CONFIGS[kind], "patch_size", "rope_parameters", "in_channels"])
    vision = VISION_CONFIGS[kind] | data.draw(st.dictionaries(names, VALUES, max_size=2))
    text = TEXT_CONFIG | data.draw(st.dictionaries(st.sampled_from(TEXT_NAMES), VALUES, max_size=2))
    outer = data.draw(
        st.dictionaries(st.sampled_from(["image_token_id", "tie_word_embeddings"]), VALUES)
    )
    if is_flat:
        text.pop("model_type", None)
    write(tmp_path, kind)
    parts = text if is_flat else {"text_config": text}
    content = {"architectures": [ARCHITECTURES[kind]], "model_type": kind, "vision_config": vision}
    (tmp_path / "config.json").write_text(json.dumps(content | parts | outer))
    try:
        config = read_config(tmp_path)
    except ModelError as error:
        assert "\n" not in str(error)
    else:
        assert image_format(config).processor == "qwen2_vl"
