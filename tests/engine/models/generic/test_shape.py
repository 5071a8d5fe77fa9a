"""Which decoders of transformers are paged, and why the others are refused."""

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CodeGenConfig,
    Cohere2Config,
    DeepseekV3Config,
    Florence2Config,
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MllamaConfig,
    Qwen3_5Config,
    Qwen3NextConfig,
)

from tests.tiny_llava import TEXT_CONFIG
from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.generic.model import build_on_meta
from vlmflow_engine.models.generic.shape import DecoderShape, check_config, measure_decoder

_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 1e4}


def measure(config, auto_class=AutoModelForCausalLM) -> DecoderShape:
    check_config(config)
    return measure_decoder(build_on_meta(auto_class, config).get_decoder())


@pytest.mark.parametrize("kind", [LlamaConfig, MistralConfig, Cohere2Config, GraniteConfig])
def test_a_plain_decoder_is_measured_without_its_weights(kind):
    shape = DecoderShape(hidden_size=64, num_layers=2, num_kv_heads=2, head_dim=16)
    assert measure(kind(**TEXT_CONFIG)) == shape


def test_heads_may_be_wider_than_the_hidden_states(caplog):
    assert measure(LlamaConfig(**TEXT_CONFIG, head_dim=24)).head_dim == 24


@pytest.mark.parametrize(
    ("config", "auto_class", "reason"),
    [
        (Gemma2Config(**TEXT_CONFIG, head_dim=16), AutoModelForCausalLM, "asks for 'softcap'"),
        (
            GptOssConfig(**TEXT_CONFIG, rope_parameters=_PLAIN_ROPE),
            AutoModelForCausalLM,
            "asks for 's_aux'",
        ),
        (
            DeepseekV3Config(**TEXT_CONFIG | {"num_key_value_heads": 4}, first_k_dense_replace=2),
            AutoModelForCausalLM,
            r"this decoder has \(heads, of keys, of values\) \[\(4, 192, 128\)\]",
        ),
        (Qwen3NextConfig(**TEXT_CONFIG), AutoModelForCausalLM, "of type 'linear_attention'"),
        (Qwen3_5Config(), AutoModelForImageTextToText, "of type 'linear_attention'"),
        (MambaConfig(), AutoModelForCausalLM, "of type 'linear_attention'"),
        (CodeGenConfig(), AutoModelForCausalLM, "takes no attention function from outside"),
        (Florence2Config(), AutoModelForImageTextToText, "an encoder that its decoder looks at"),
        (MllamaConfig(), AutoModelForImageTextToText, "takes 'cross_attention_states' beside"),
        (GPT2Config(), AutoModelForCausalLM, "takes 'token_type_ids' beside"),
        (
            LlamaConfig(
                **TEXT_CONFIG,
                rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
            ),
            AutoModelForCausalLM,
            "answers would depend on their neighbours",
        ),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "model_type") else "",
)
def test_another_kind_of_decoder_is_refused_with_the_reason(config, auto_class, reason):
    with pytest.raises(ModelError, match=reason):
        measure(config, auto_class)


def test_a_decoder_whose_tokens_see_later_ones_is_refused():
    model = build_on_meta(AutoModelForCausalLM, LlamaConfig(**TEXT_CONFIG))
    model.model.layers[1].self_attn.is_causal = False
    with pytest.raises(ModelError, match="see later ones"):
        measure_decoder(model.get_decoder())


def test_a_layer_that_hides_how_far_it_sees_is_refused():
    config = Cohere2Config(**TEXT_CONFIG, layer_types=["sliding_attention", "full_attention"])
    model = build_on_meta(AutoModelForCausalLM, config)
    model.model.layers[0].self_attn.sliding_window = None
    with pytest.raises(ModelError, match="how far a layer sees"):
        measure_decoder(model.get_decoder())
