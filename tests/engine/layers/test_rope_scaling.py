"""Frequencies of stretched rotary embeddings, against transformers' own."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import _compute_longrope_parameters
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vlmflow_engine.errors import ModelError
from vlmflow_engine.layers.rope_scaling import long_rope, rope_frequencies
from vlmflow_engine.layers.rotary import RotaryEmbedding

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1 + 0.1 * index for index in range(64)],
    "long_factor": [2.0 + index for index in range(64)],
    "original_max_position_embeddings": 512,
}
SCALINGS = [
    {"rope_type": "linear", "factor": 2.5},
    {"type": "linear", "factor": 4},  # the older spelling
    LLAMA3,
    LLAMA3 | {"factor": 32.0, "rope_theta": 500000.0},
    LLAMA3 | {"low_freq_factor": 2.0, "high_freq_factor": 2.5},
    YARN,
    YARN | {"rope_theta": 1e6, "beta_fast": 16, "beta_slow": 2},
    YARN | {"truncate": False},
    YARN | {"attention_factor": 0.8},
    YARN | {"factor": 40, "mscale": 1.0, "mscale_all_dim": 0.707},
    YARN | {"factor": 1.0},
    YARN | {"original_max_position_embeddings": 4},  # one dimension holds the whole ramp
]


def make_config(parameters: dict, head_dim: int = 64) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=2048,
        rope_parameters=dict(parameters),
    )


@pytest.mark.parametrize("head_dim", [16, 80, 128])
@pytest.mark.parametrize("parameters", SCALINGS, ids=str)
def test_frequencies_and_attention_factor_are_those_of_transformers(parameters, head_dim):
    config = make_config(parameters, head_dim)
    theirs = LlamaRotaryEmbedding(config)
    frequencies, attention_factor = rope_frequencies(config, head_dim)
    torch.testing.assert_close(frequencies, theirs.inv_freq, rtol=1e-6, atol=0)
    assert attention_factor == pytest.approx(theirs.attention_scaling, rel=1e-12)


def test_every_scaling_has_frequencies_of_its_own():
    found = {tuple(rope_frequencies(make_config(p), 64)[0].tolist()) for p in SCALINGS}
    # Two of yarn differ in their attention factors only.
    assert len(found) == len(SCALINGS) - 1


def test_cosines_and_sines_bear_the_attention_factor():
    config, positions = make_config(YARN), torch.tensor([0, 3, 2047])
    frequencies, attention_factor = rope_frequencies(config, 64)
    rotary = RotaryEmbedding(
        frequencies,
        attention_factor=attention_factor,
        dtype=torch.float32,
        device="cpu",
    )
    expected = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    for ours, theirs in zip(rotary.at(positions), expected, strict=True):
        torch.testing.assert_close(ours[:, 0], theirs[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [1.3, 2.0])
def test_dynamic_frequencies_are_the_plain_ones_as_long_as_the_context_is(factor):
    config = make_config({"rope_type": "dynamic", "factor": factor})
    theirs = LlamaRotaryEmbedding(config)
    theirs(torch.zeros(1), torch.arange(2048)[None])
    torch.testing.assert_close(rope_frequencies(config, 64)[0], theirs.inv_freq, rtol=1e-6, atol=0)
    theirs(torch.zeros(1), torch.arange(2049)[None])
    assert not torch.allclose(rope_frequencies(config, 64)[0], theirs.inv_freq, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("fields", "theta"),
    [
        ({}, 10000.0),
        ({"rope_theta": 250000.0}, 250000.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}, 777.0),
        ({"rope_theta": 123.0, "rope_scaling": None}, 123.0),
    ],
    ids=str,
)
def test_the_base_is_read_from_old_and_new_configs(fields, theta):
    frequencies, attention_factor = rope_frequencies(LlamaConfig(**fields), 8)
    torch.testing.assert_close(frequencies, theta ** -(torch.arange(0, 8, 2) / 8))
    assert attention_factor == 1.0


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, "original_max_position_embeddings must be"),
        (LONG | {"short_factor": [1.0]}, "short_factor must be [0-9]+ numbers"),
        (LONG | {"short_factor": ["1"] * 32}, "short_factor must be a number above 0, got '1'"),
        (LONG | {"short_factor": None}, "short_factor must be [0-9]+ numbers"),
        ({"rope_type": "spiral"}, "rope_type 'spiral' is not supported"),
        ({"rope_type": "linear"}, "factor must be a number above 0, got None"),
        ({"rope_type": "linear", "factor": 0}, "factor must be a number above 0, got 0"),
        ({"rope_type": "linear", "factor": "2"}, "factor must be a number above 0, got '2'"),
        ({"rope_type": "linear", "factor": True}, "factor must be a number above 0, got True"),
        ({"rope_type": "linear", "factor": float("nan")}, "got nan"),
        ({"rope_type": "linear", "factor": float("inf")}, "got inf"),
        ({"rope_type": "default", "rope_theta": 1.0}, "rope_theta must be a number above 1"),
        ({"rope_type": "default", "rope_theta": "1e4"}, "rope_theta must be a number above 1"),
        (LLAMA3 | {"low_freq_factor": 4.0}, "low_freq_factor 4.0 must be below"),
        (LLAMA3 | {"original_max_position_embeddings": None}, "original_max_position_embeddings"),
        (YARN | {"attention_factor": "1"}, "attention_factor must be a number"),
        (YARN | {"mscale": "1", "mscale_all_dim": 1.0}, "mscale must be a number"),
        (
            {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
            "partial_rotary_factor is not supported",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_computed_is_one_sentence(parameters, sentence):
    config = LlamaConfig()
    config.rope_parameters = parameters
    with pytest.raises(ModelError, match=sentence):
        rope_frequencies(config, 64)


@pytest.mark.parametrize("attention_factor", [None, 0.7])
def test_long_sequences_have_frequencies_of_their_own(attention_factor):
    config = make_config(LONG | {"attention_factor": attention_factor}, head_dim=128)
    expected, scaling = _compute_longrope_parameters(config, seq_len=512)
    longer, _ = _compute_longrope_parameters(config, seq_len=513)
    frequencies, factor = rope_frequencies(config, 128)
    long_frequencies, context = long_rope(config, 128)
    assert context == 512 and factor == pytest.approx(scaling)
    torch.testing.assert_close(frequencies, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(long_frequencies, longer, rtol=1e-6, atol=0)
