"""RMSNorm by the kernel, with and without a residual, against torch's."""

import pytest
import torch
from torch import Tensor

from vlmflow_engine.kernels.dispatch import interpreting
from vlmflow_engine.kernels.rms_norm import (
    add_rms_norm,
    add_rms_norm_reference,
    rms_norm,
    rms_norm_reference,
)
from vlmflow_engine.layers.norm import RMSNorm

# The interpreter cuts off what a bfloat16 does not hold, where a GPU rounds.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 2**-7}
SHAPES = ((1, 1), (1, 17), (17, 48), (131, 64), (3, 1000), (2, 3584), (0, 16), (2, 3, 5, 80))


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCES[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm_is_torchs(shape, dtype):
    x, weight = draw(*shape, dtype=dtype), draw(shape[-1], seed=1, dtype=dtype)
    normed = rms_norm(x, weight, 1e-6)
    assert normed.is_contiguous()
    assert_near(normed, rms_norm_reference(x, weight, 1e-6))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sum_is_returned_beside_its_norm(shape, dtype):
    x, residual = draw(*shape, dtype=dtype), draw(*shape, seed=2, dtype=dtype)
    weight = draw(shape[-1], seed=1, dtype=dtype)
    before = x.clone()
    normed, total = add_rms_norm(x, residual, weight, 1e-6)
    expected_normed, expected_total = add_rms_norm_reference(x, residual, weight, 1e-6)
    assert_near(total, expected_total)
    if dtype != torch.bfloat16:
        assert torch.equal(total, expected_total)
        assert_near(normed, expected_normed)
    assert_near(normed, rms_norm_reference(total, weight, 1e-6))
    assert torch.equal(x, before)


def test_heads_of_a_merged_projection_are_read_where_they_lie():
    merged, weight = draw(5, 7, 32), draw(32, seed=1)
    for heads in (merged[:, :4], merged[:, 4:6], merged[:, 6:]):
        assert_near(rms_norm(heads, weight, 1e-5), rms_norm_reference(heads, weight, 1e-5))


def test_eps_keeps_a_row_of_zeros_finite_and_counts():
    weight = torch.ones(16)
    assert not rms_norm(torch.zeros(2, 16), weight, 1e-6).any()
    x = draw(3, 16)
    assert_near(rms_norm(x, weight, 0.5), rms_norm_reference(x, weight, 0.5))


def test_squares_are_summed_in_float32():
    x = torch.full((1, 64), 300.0, dtype=torch.float16)  # its square is beyond float16
    assert_near(rms_norm(x, torch.ones(64).half(), 1e-6), torch.ones(1, 64).half())


@pytest.mark.parametrize("size", [48, 128, 1500])
def test_a_row_alone_is_bit_by_bit_what_it_is_among_others_and_a_nan_stays_in_its_row(size):
    x, weight = draw(64, size), draw(size, seed=1)
    x[5, 3] = torch.nan
    together = rms_norm(x, weight, 1e-6)
    assert together.isnan().any(dim=1).nonzero().flatten().tolist() == [5]
    for row in (0, 7, 38, 63):
        assert torch.equal(rms_norm(x[row : row + 1], weight, 1e-6)[0], together[row])


def test_the_layer_gives_the_same_by_the_kernel():
    norm, x, residual = RMSNorm(draw(48, seed=1), 1e-6), draw(17, 48), draw(17, 48, seed=2)
    expected = norm(x), *norm.of_sum(x, residual)
    assert torch.equal(expected[2], x + residual)
    with interpreting():
        actual = norm(x), *norm.of_sum(x, residual)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_near(ours, theirs)
