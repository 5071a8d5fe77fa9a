"""LayerNorm by the kernel, against torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlmflow_engine.kernels.dispatch import interpreting
from vlmflow_engine.kernels.layer_norm import layer_norm, layer_norm_reference
from vlmflow_engine.layers.norm import LayerNorm

# The interpreter cuts off what a bfloat16 does not hold, where a GPU rounds.
TOLERANCES = {torch.float32: 4e-6, torch.float16: 2e-3, torch.bfloat16: 2**-6}
SHAPES = ((1, 1), (1, 17), (17, 48), (131, 64), (3, 1000), (2, 3200), (0, 16), (2, 3, 5, 80))


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def parameters(size: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return draw(size, seed=1, dtype=dtype), draw(size, seed=2, dtype=dtype)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCES[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm_is_torchs(shape, dtype):
    x = 3 * draw(*shape, dtype=dtype) + 1
    weight, bias = parameters(shape[-1], dtype)
    normed = layer_norm(x, weight, bias, 1e-6)
    assert normed.is_contiguous() and normed.shape == x.shape
    assert_near(normed, layer_norm_reference(x, weight, bias, 1e-6))


def test_rows_of_a_wider_tensor_are_read_where_they_lie():
    x, (weight, bias) = draw(5, 100)[:, 20:68], parameters(48)
    assert_near(layer_norm(x, weight, bias, 1e-5), layer_norm_reference(x, weight, bias, 1e-5))


def test_a_large_mean_costs_no_digits_of_the_deviations():
    x, (weight, bias) = draw(3, 100) + 1e4, parameters(100)
    expected = F.layer_norm(x.double(), (100,), weight.double(), bias.double(), 1e-6)
    # The mean itself is a float32, of which 1e-3 is the last digit.
    torch.testing.assert_close(
        layer_norm(x, weight, bias, 1e-6).double(), expected, rtol=0, atol=5e-3
    )


def test_eps_keeps_a_row_of_equal_elements_finite_and_counts():
    weight, bias = parameters(24)
    assert torch.equal(layer_norm(torch.full((1, 24), 2.5), weight, bias, 1e-6)[0], bias)
    x = draw(3, 24)
    assert_near(layer_norm(x, weight, bias, 0.5), layer_norm_reference(x, weight, bias, 0.5))


@pytest.mark.parametrize("size", [48, 1500])
def test_a_row_alone_is_bit_by_bit_what_it_is_among_others_and_a_nan_stays_in_its_row(size):
    x, (weight, bias) = draw(64, size), parameters(size)
    x[5, 3] = torch.nan
    together = layer_norm(x, weight, bias, 1e-6)
    assert together.isnan().any(dim=1).nonzero().flatten().tolist() == [5]
    for row in (0, 7, 38, 63):
        assert torch.equal(layer_norm(x[row : row + 1], weight, bias, 1e-6)[0], together[row])


def test_the_layer_gives_the_same_by_the_kernel():
    norm, x = LayerNorm(*parameters(48), 1e-6), draw(17, 48)
    expected = norm(x)
    with interpreting():
        assert_near(norm(x), expected)
