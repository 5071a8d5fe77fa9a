"""A linear layer that gives a row the same bits in whatever company."""

import pytest
import torch
from torch import Tensor

from vlmflow_engine.kernels.fixed_tile_linear import (
    fixed_tile_linear,
    fixed_tile_linear_reference,
)

# The interpreter cuts off what a bfloat16 does not hold, where a GPU rounds.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 2**-7}
# Rows, in_features, out_features: tiles less, exactly and more than full, of each.
SHAPES = ((1, 1, 1), (17, 131, 65), (64, 64, 128), (65, 128, 129), (131, 80, 30), (0, 16, 8))


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(actual: Tensor, expected: Tensor, in_features: int) -> None:
    tolerance = TOLERANCES[expected.dtype]
    scale = in_features**0.5
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_is_multiplied(shape, dtype):
    num_rows, inputs, outputs = shape
    x, weight = draw(num_rows, inputs, dtype=dtype), draw(outputs, inputs, seed=1, dtype=dtype)
    bias = draw(outputs, seed=2, dtype=dtype)
    for added in (bias, None):
        out = fixed_tile_linear(x, weight, added)
        assert out.dtype == dtype and out.is_contiguous()
        assert_near(out, fixed_tile_linear_reference(x, weight, added), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_rows", [2, 31, 64, 77])
def test_a_row_alone_is_bit_by_bit_what_it_is_among_others(num_rows, dtype):
    x, weight = draw(num_rows, 300, dtype=dtype), draw(70, 300, seed=1, dtype=dtype)
    bias = draw(70, seed=2, dtype=dtype)
    together = fixed_tile_linear(x, weight, bias)
    for row in {0, 1, num_rows // 2, num_rows - 1}:
        assert torch.equal(fixed_tile_linear(x[row : row + 1], weight, bias)[0], together[row])
    turned = torch.arange(num_rows).roll(13)
    assert torch.equal(fixed_tile_linear(x[turned], weight, bias), together[turned])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_dot_of_a_gpu_multiplies_as_well(shape, monkeypatch):
    # The interpreter's own is left out above: its bits depend on a row's place.
    monkeypatch.setattr("vlmflow_engine.kernels.fixed_tile_linear.is_interpreted", lambda: False)
    num_rows, inputs, outputs = shape
    x, weight, bias = draw(num_rows, inputs), draw(outputs, inputs, seed=1), draw(outputs, seed=2)
    out = fixed_tile_linear(x, weight, bias)
    assert_near(out, fixed_tile_linear_reference(x, weight, bias), inputs)


def test_a_rows_nan_stays_its_own():
    x, weight = draw(9, 40), draw(20, 40, seed=1)
    x[4, 7] = torch.nan
    out = fixed_tile_linear(x, weight)
    assert out.isnan().any(dim=1).tolist() == [row == 4 for row in range(9)]


def test_rows_of_a_wider_tensor_are_read_where_they_lie_and_leading_dimensions_are_kept():
    wide, weight = draw(6, 100), draw(20, 48, seed=1)
    x = wide[:, 20:68]
    assert_near(fixed_tile_linear(x, weight), fixed_tile_linear_reference(x, weight), 48)
    x = draw(2, 3, 48)
    out = fixed_tile_linear(x, draw(20, 60, seed=1)[:, :48])
    assert out.shape == (2, 3, 20)
    assert_near(out, fixed_tile_linear_reference(x, draw(20, 60, seed=1)[:, :48]), 48)
