"""Rows in float8: what comes back, and how far from what went in."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlmflow_engine.kernels.kv_float8 import dequantise_float8, quantise_float8

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1, 2), (1, 1, 64), (17, 2, 32), (131, 3, 81), (0, 2, 16), (2, 16, 4, 128))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def round_trip(x: Tensor) -> Tensor:
    return dequantise_float8(*quantise_float8(x), x.dtype)


def assert_within_bound(x: Tensor) -> None:
    """Three bits behind the point: a sixteenth of an element, or half the least step."""
    codes, scales = quantise_float8(x)
    error = (dequantise_float8(codes, scales, x.dtype).double() - x.double()).abs()
    rounding = torch.finfo(x.dtype).eps * x.double().abs().amax(dim=-1, keepdim=True) + 1e-44
    step = scales.double() / 1024
    assert (error <= torch.maximum(x.double().abs() / 16, step) + rounding).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_comes_back_in_its_shape_and_dtype_within_a_sixteenth(shape, dtype):
    x = draw(*shape).to(dtype)
    if x.numel():
        codes, scales = quantise_float8(x)
        assert (codes.shape, codes.dtype) == (shape, torch.float8_e4m3fn)
        assert (scales.shape, scales.dtype) == ((*shape[:-1], 1), torch.bfloat16)
        assert_within_bound(x)
    back = round_trip(x)
    assert (back.shape, back.dtype) == (x.shape, dtype)


def test_gaussian_rows_come_back_as_near_as_three_bits_behind_the_point_can():
    x = draw(2000, 64)
    error = (round_trip(x) - x).square().mean().sqrt() / x.square().mean().sqrt()
    assert 0.02 < error < 0.026


def test_the_scale_takes_the_largest_element_near_the_largest_number_and_not_above():
    codes, scales = quantise_float8(draw(500, 64))
    assert codes.float().abs().amax(dim=-1).unique().tolist() == [448]
    assert (draw(500, 64).abs().amax(dim=-1) <= 448 * scales.float()[:, 0]).all()


@pytest.mark.parametrize("magnitude", [1e30, -1e30, 65536.0, 1e-30, 1e-38, 1e-42])
def test_huge_and_tiny_elements_are_kept_within_the_bound(magnitude):
    x = draw(4, 32)
    x[:2] *= magnitude
    x[2, 3] = magnitude
    assert round_trip(x).isfinite().all()
    assert_within_bound(x)


def test_zeros_and_zeroed_memory_read_as_zeros():
    assert not round_trip(torch.zeros(3, 16)).any()
    codes = torch.zeros(3, 16, dtype=torch.uint8).view(torch.float8_e4m3fn)
    scales = torch.zeros(3, 1, dtype=torch.bfloat16)
    assert torch.equal(dequantise_float8(codes, scales, torch.float32), torch.zeros(3, 16))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_is_not_read_as_numbers(value):
    x = draw(3, 16)
    x[1, 5] = value
    back = round_trip(x)
    assert back[1].isnan().all()
    assert back[[0, 2]].isfinite().all()


def test_views_are_taken_as_they_are():
    view = draw(5, 6, 32)[:, 2:4]
    assert torch.equal(round_trip(view), round_trip(view.contiguous()))


@settings(max_examples=200, deadline=None)
@given(
    row=st.lists(
        st.floats(min_value=-(2.0**100), max_value=2.0**100, width=32), min_size=1, max_size=40
    ),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
)
def test_no_finite_row_is_further_off_than_the_bound(row, dtype):
    assert_within_bound(torch.tensor([row]).to(dtype))
