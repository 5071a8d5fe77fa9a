"""The C++ activations are torch's in float32, rounded once, at every instruction set."""

import pytest
import torch
import torch.nn.functional as F

from vlmflow_engine.kernels.cpu.activations import ACTIVATIONS, activate, gated_activation
from vlmflow_engine.layers.mlp import activation

REFERENCES = {
    "silu": F.silu,
    "quick_gelu": lambda x: x * (1.702 * x).sigmoid(),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 5e-3}
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
names = pytest.mark.parametrize("name", ACTIVATIONS)


def _random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return (5 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))).to(dtype)


def _check(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCES[dtype]
    assert actual.dtype == dtype and actual.is_contiguous()
    torch.testing.assert_close(actual.float(), expected, rtol=tolerance, atol=tolerance)


@dtypes
@names
@pytest.mark.parametrize("shape", [(1, 1), (17, 131), (2, 3, 64)], ids=str)
def test_an_activation_is_torchs(level, shape, name, dtype):
    x = _random(*shape, dtype=dtype)
    _check(activate(x, name), REFERENCES[name](x.float()), dtype)


@dtypes
@names
@pytest.mark.parametrize("shape", [(1, 2), (17, 262), (2, 3, 64)], ids=str)
def test_a_gated_one_multiplies_by_the_second_half(level, shape, name, dtype):
    x = _random(*shape, dtype=dtype)
    gate, up = x.float().chunk(2, dim=-1)
    _check(gated_activation(x, name), REFERENCES[name](gate) * up, dtype)


def test_rows_of_a_wider_layer_are_read_where_they_lie(library):
    x = _random(5, 80, dtype=torch.float32)
    assert torch.equal(
        gated_activation(x[:, 16:], "silu"), gated_activation(x[:, 16:].clone(), "silu")
    )


@names
def test_large_and_missing_numbers_come_out_as_torchs(level, name):
    x = torch.tensor([-3e38, -200.0, -90.0, -0.0, 0.0, 90.0, 200.0, torch.inf, torch.nan])
    torch.testing.assert_close(
        activate(x, name), REFERENCES[name](x), rtol=2e-6, atol=1e-30, equal_nan=True
    )


def test_layers_on_a_cpu_are_activated_by_them(library):
    x = _random(3, 256, dtype=torch.bfloat16)
    gate, up = x.chunk(2, dim=-1)
    gated = activation("silu").gated(x)
    assert torch.equal(gated, gated_activation(x, "silu"))
    assert not torch.equal(gated, F.silu(gate) * up)  # which rounds twice
