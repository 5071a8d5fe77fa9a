"""An original config.json means what its authors' classes make of it; nonsense is one sentence."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING

from tests.tiny_internvl import make_internvl
from tests.tiny_internvl_original import original_config
from vlmflow_engine.errors import ConfigError, ModelError
from vlmflow_engine.layers.rope_scaling import long_rope, rope_frequencies
from vlmflow_engine.models.internvl_chat_config import ImageSettings
from vlmflow_engine.models.registry import image_format, read_config, text_config

# Of InternVL2-8B and InternVL2-26B.
VISION_300M = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 448,
    "norm_type": "layer_norm",
    "qkv_bias": True,
    "qk_normalization": False,
}
INTERNLM2_8B = {
    "architectures": ["InternLM2ForCausalLM"],
    "model_type": "internlm2",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 92553,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000,
    "rope_scaling": {"factor": 2.0, "type": "dynamic"},
    "max_position_embeddings": 32768,
    "bias": False,
}


@pytest.fixture(scope="module")
def complete() -> dict[str, Any]:
    """A config.json that names everything."""
    return original_config(make_internvl("internlm2").config, "internlm2", "300m")


def test_internvl2_8b(tmp_path):
    config = _read(
        tmp_path,
        {
            "vision_config": VISION_300M,
            "llm_config": INTERNLM2_8B,
            "force_image_size": 448,
            "dynamic_image_size": True,
            "use_thumbnail": True,
            "max_dynamic_patch": 12,
            "ps_version": "v2",
            "template": "internlm2-chat",
        },
    )
    text, vision = text_config(config), config.vision_config
    assert (text.model_type, text.attention_bias, text.mlp_bias) == ("llama", False, False)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000000}
    assert rope.items() <= text.rope_parameters.items()
    assert (text.num_key_value_heads, text.vocab_size, text.bos_token_id) == (8, 92553, 1)
    assert (vision.attention_bias, vision.use_qk_norm, vision.norm_type) == (
        True,
        False,
        "layer_norm",
    )
    assert image_format(config).parameters == {
        "patch_size": 14,
        "shuffle_factor": 2,
        "side": 448,
        "min_tiles": 1,
        "max_tiles": 12,
        "is_dynamic": True,
        "has_thumbnail": True,
    }
    assert image_format(config).template == "internvl2-internlm2"


def test_a_sparse_config_gets_the_authors_defaults(tmp_path):
    config = _read(tmp_path, {"llm_config": {"architectures": ["InternLM2ForCausalLM"]}})
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (
        3200,
        48,
        25,
    )
    assert (vision.norm_type, vision.attention_bias, vision.use_qk_norm) == (
        "rms_norm",
        False,
        True,
    )
    assert (list(vision.image_size), vision.layer_norm_eps) == ([224, 224], 1e-6)
    assert (text.vocab_size, text.num_key_value_heads, text.attention_bias) == (103168, 32, True)
    assert (config.ps_version, config.downsample_ratio, config.vision_feature_layer) == (
        "v1",
        0.5,
        -1,
    )
    assert config.image_settings == ImageSettings(
        side=224,
        min_tiles=1,
        max_tiles=6,
        is_dynamic=False,
        has_thumbnail=False,
        template=None,
        system=None,
    )


@pytest.mark.parametrize(
    ("llm", "kind"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, "qwen2"),
        ({"architectures": ["Qwen3ForCausalLM"]}, "qwen3"),
        ({"architectures": ["Phi3ForCausalLM"]}, "phi3"),
        ({"architectures": ["LlamaForCausalLM"]}, "llama"),
        ({"model_type": "internlm2"}, "llama"),
        ({"model_type": "qwen3"}, "qwen3"),
    ],
)
def test_each_language_model_gets_its_own_defaults(llm, kind, tmp_path):
    text = text_config(_read(tmp_path, {"llm_config": llm}))
    assert text.model_type == kind
    if llm != {"model_type": "internlm2"}:
        defaults = CONFIG_MAPPING[kind]()
        for name in ("vocab_size", "hidden_size", "rms_norm_eps", "rope_parameters"):
            assert getattr(text, name) == getattr(defaults, name)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"llm_config": None}, "llm_config must be an object, got None"),
        ({"llm_config": []}, "llm_config must be an object, got []"),
        ({"llm_config": {}}, "a language model 'None' is not supported; supported are InternLM2"),
        ({"llm_config": {"architectures": ["Qwen3MoeForCausalLM"]}}, "'Qwen3MoeForCausalLM' is"),
        ({"vision_config": 5}, "vision_config must be an object, got 5"),
        ({"use_llm_lora": 16}, "use_llm_lora=16 is not supported"),
        ({"pad2square": True}, "pad2square=True is not supported"),
        ({"ps_version": "v3"}, "ps_version must be 'v1' or 'v2', got 'v3'"),
        ({"template": "vicuna_v1.1"}, "template 'vicuna_v1.1' is not supported; supported are "),
        ({"template": 3}, "template must be a text, got 3"),
        ({"min_dynamic_patch": 7, "max_dynamic_patch": 6}, "min_dynamic_patch 7 is above max"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch must be a whole number from 1 to 256"),
        ({"use_thumbnail": "yes"}, "use_thumbnail must be true or false, got 'yes'"),
        ({"force_image_size": -1}, "force_image_size must be a whole number"),
        ({"downsample_ratio": 0.3}, "downsample_ratio must be 1, 0.5 or 0.25, got 0.3"),
        ({"select_layer": 9}, "vision_feature_layer 9 does not exist in a tower of 3 layers"),
    ],
    ids=str,
)
def test_what_cannot_be_is_named(fields, sentence, complete, tmp_path):
    with pytest.raises(ModelError) as error:
        _read(tmp_path, complete | fields)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "fields", "sentence"),
    [
        ("vision_config", {"num_attention_heads": 3}, "hidden_size 64 is no multiple of 3 heads"),
        ("vision_config", {"num_attention_heads": 0}, "num_attention_heads must be a whole"),
        ("vision_config", {"image_size": [56, 28]}, "image_size must be a square"),
        ("vision_config", {"image_size": []}, "image_size must be a square"),
        ("vision_config", {"norm_type": "batch_norm"}, "norm_type must be 'layer_norm' or"),
        ("vision_config", {"num_channels": 1}, "num_channels must be 3, got 1"),
        ("llm_config", {"num_key_value_heads": 3}, "4 heads cannot share 3 key and value heads"),
        ("llm_config", {"num_attention_heads": 5}, "multiple of the number of attention heads"),
        ("llm_config", {"hidden_size": "wide"}, "hidden_size"),
        ("llm_config", {"num_hidden_layers": 0}, "num_hidden_layers must be a whole number"),
        ("llm_config", {"rope_pos_id_version": "v2pe_fix"}, "rope_pos_id_version 'v2pe_fix' is"),
    ],
    ids=str,
)
def test_what_cannot_be_in_a_section_is_named(section, fields, sentence, complete, tmp_path):
    with pytest.raises(ModelError) as error:
        _read(tmp_path, complete | {section: complete[section] | fields})
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


_VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from(["v1", "v2", "gelu", "layer_norm", "internvl2_5", 0.5, 1 << 70])
    | st.lists(st.integers(0, 60), max_size=3)
    | st.dictionaries(st.sampled_from(["type", "factor", "rope_type"]), st.integers(-1, 4))
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_config_is_read_or_refused_in_one_sentence(data, complete, tmp_path):
    content = json.loads(json.dumps(complete))
    for section in data.draw(st.sets(st.sampled_from(["", "vision_config", "llm_config"]))):
        part = content[section] if section else content
        names = st.sampled_from(
            sorted(part.keys() - {"architectures", "llm_config", "vision_config"})
        )
        for name in data.draw(st.sets(names, max_size=6)):
            if data.draw(st.booleans()):
                del part[name]
            else:
                part[name] = data.draw(_VALUES)
    try:
        config = _read(tmp_path, content)
        assert image_format(config).parameters["max_tiles"] >= 1
        assert text_config(config).num_attention_heads >= 1
    except ModelError as error:
        assert "\n" not in str(error)
        assert str(error).strip()


def test_phi3_with_a_long_context_keeps_both_lists_of_factors(tmp_path):
    short, long = [1.0] * 48, [1.5] * 48
    llm = {
        "architectures": ["Phi3ForCausalLM"],
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "su", "short_factor": short, "long_factor": long},
    }
    text = text_config(_read(tmp_path, {"llm_config": llm}))
    frequencies, factor = rope_frequencies(text, 96)
    longer, context = long_rope(text, 96)
    assert context == 4096
    torch.testing.assert_close(longer * 1.5, frequencies)
    assert factor == pytest.approx((1 + math.log(32) / math.log(4096)) ** 0.5)


def test_an_override_is_named_as_in_the_original(complete, tmp_path):
    overrides = {"max_dynamic_patch": 4, "llm_config": {"max_position_embeddings": 99}}
    config = _read(tmp_path, complete, overrides)
    assert image_format(config).parameters["max_tiles"] == 4
    assert text_config(config).max_position_embeddings == 99
    for wrong, name in (
        ({"max_dynamic_patches": 4}, "'max_dynamic_patches'"),
        ({"llm_config": {"hidden_sizes": 4}}, "'llm_config.hidden_sizes'"),
        ({"vision_config": {"attention_bias": True}}, "'vision_config.attention_bias'"),
    ):
        with pytest.raises(ConfigError, match=name):
            _read(tmp_path, complete, wrong)


def _read(folder: Path, content: dict[str, Any], overrides: dict[str, Any] | None = None) -> Any:
    whole = {"architectures": ["InternVLChatModel"], "model_type": "internvl_chat"} | content
    (folder / "config.json").write_text(json.dumps(whole))
    return read_config(folder, overrides)
