"""Feed-forward blocks and activations, against transformers' own."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.clip.modeling_clip import CLIPMLP
from transformers.models.llama.modeling_llama import LlamaMLP

from vlmflow_engine.errors import ModelError
from vlmflow_engine.layers.linear import Linear
from vlmflow_engine.layers.mlp import MLP, GatedMLP, activation

ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_that_of_transformers(name):
    x = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(activation(name)(x), ACT2FN[name](x))


def test_an_unknown_activation_is_refused_with_those_that_are_known():
    with pytest.raises(ModelError, match=r"'mish' is not known; known are .*quick_gelu.*silu"):
        activation("mish")


@torch.inference_mode()
def test_mlp_is_clips():
    theirs = CLIPMLP(CLIPVisionConfig(hidden_size=24, intermediate_size=40))
    ours = MLP(
        *(Linear(part.weight, part.bias) for part in (theirs.fc1, theirs.fc2)),
        activation("quick_gelu"),
    )
    x = torch.randn(17, 24)
    torch.testing.assert_close(ours(x), theirs(x))


@torch.inference_mode()
@pytest.mark.parametrize("has_bias", [False, True])
def test_gated_mlp_is_llamas(has_bias):
    theirs = LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=40, mlp_bias=has_bias))
    gate, up, down = (
        Linear(part.weight, part.bias)
        for part in (theirs.gate_proj, theirs.up_proj, theirs.down_proj)
    )
    ours = GatedMLP(Linear.merged([gate, up]), down, activation("silu"))
    x = torch.randn(17, 32)
    torch.testing.assert_close(ours(x), theirs(x))
