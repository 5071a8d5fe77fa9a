"""act(gate) * up by the kernel, against torch's."""

import pytest
import torch
from torch import Tensor
from transformers.activations import ACT2FN

from vlmflow_engine.kernels.dispatch import interpreting
from vlmflow_engine.kernels.gated_activation import (
    ACTIVATIONS,
    gated_activation,
    gated_activation_reference,
)
from vlmflow_engine.layers.linear import Linear
from vlmflow_engine.layers.mlp import GatedMLP, activation

# The interpreter cuts off what a bfloat16 does not hold, where a GPU rounds.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 2**-7}
SHAPES = ((1, 2), (17, 34), (3, 2048), (2, 2050), (131, 80), (0, 16), (2, 3, 160))


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCES[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_that_of_transformers(name):
    gate = torch.linspace(-9, 9, 301)
    gate_up = torch.cat([gate, torch.ones(301)])[None]
    assert_near(gated_activation(gate_up, name)[0], ACT2FN[name](gate))


def test_every_activation_of_a_config_has_a_kernel():
    for name in ACTIVATIONS:
        assert activation(name).name == name


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_is_computed_in_float32_and_rounded_once(shape, dtype):
    gate_up = draw(*shape, dtype=dtype)
    out = gated_activation(gate_up, "silu")
    assert out.shape == (*shape[:-1], shape[-1] // 2) and out.is_contiguous()
    assert_near(out, gated_activation_reference(gate_up, "silu"))


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # NumPy's; a GPU gives none
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_far_from_zero_it_is_zero_or_the_gate_itself(name):
    gate_up = torch.tensor([[-1e4, -200.0, 200.0, 1e4, 1.0, 1.0, 1.0, 1.0]])
    assert gated_activation(gate_up, name).tolist() == [[0, 0, 200, 1e4]]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_nan_stays_where_it_is(name):
    gate_up = draw(3, 20)
    gate_up[1, 3] = gate_up[2, 14] = torch.nan
    assert gated_activation(gate_up, name).isnan().nonzero().tolist() == [[1, 3], [2, 4]]


def test_rows_of_a_wider_tensor_are_read_where_they_lie():
    gate_up = draw(5, 100)[:, 20:68]
    assert_near(gated_activation(gate_up, "gelu"), gated_activation_reference(gate_up, "gelu"))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_layer_gives_the_same_by_the_kernel(name):
    mlp = GatedMLP(Linear(draw(80, 24) / 30), Linear(draw(24, 40)), activation(name))
    x = draw(17, 24)
    expected = mlp(x)
    with interpreting():
        torch.testing.assert_close(mlp(x), expected, rtol=1e-5, atol=1e-4)
