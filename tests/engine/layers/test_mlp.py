"""Feed-forward blocks and activations, against transformers' own."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.clip.modeling_clip import CLIPMLP
from transformers.models.llama.modeling_llama import LlamaMLP

from vlmflow_engine.errors import ModelError
from vlmflow_engine.kernels.cpu.linear import linear_functions
from vlmflow_engine.layers.int8_weight import Int8Format
from vlmflow_engine.layers.linear import Linear
from vlmflow_engine.layers.lora import LoraWeights
from vlmflow_engine.layers.mlp import MLP, GatedMLP, activation
from vlmflow_engine.layers.packed_weight import PackedFormat

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


@torch.inference_mode()
@pytest.mark.parametrize("is_int8", [False, True], ids=["bfloat16", "int8"])
@pytest.mark.parametrize(
    ("name", "size", "is_one_call"),
    [("silu", 128, True), ("silu", 40, False), ("gelu_pytorch_tanh", 128, False)],
)
def test_a_gate_within_the_layer_is_the_one_behind_it(name, size, is_one_call, is_int8):
    functions = linear_functions()
    if functions is None:
        pytest.skip("takes AVX512-BF16 and a C++ compiler")
    packed = PackedFormat(functions)
    kept = Int8Format(functions, packed) if is_int8 else packed

    def linear(outputs: int, inputs: int) -> Linear:
        weight = torch.randn(outputs, inputs).bfloat16()
        memory = lambda count: torch.empty(count, dtype=torch.uint8)  # noqa: E731
        return Linear(kept(weight, "text.layers.0.mlp", memory))

    torch.manual_seed(0)
    mlp = GatedMLP(linear(2 * size, 64), linear(64, size), activation(name))
    x = torch.randn(9, 64).bfloat16()
    gated = mlp.gate_up.weight.gated(x, None, name)
    assert (gated is not None) == is_one_call
    behind = mlp.down(mlp.act.gated(mlp.gate_up(x)))
    assert (mlp(x).float() - behind.float()).norm() < 0.02 * behind.float().norm()
    # With an adapter the gate comes behind for all rows, those of a step without it too.
    mlp.gate_up.adapters["one"] = LoraWeights(torch.zeros(1, 64), torch.zeros(2 * size, 1))
    assert torch.equal(mlp(x), behind)
