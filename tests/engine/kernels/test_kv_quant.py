"""Rows in 8 and 4 bits: what comes back, how far from what went in, and how it is packed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlmflow_engine.kernels.kv_quant import codes_per_row, dequantise, quantise

BITS = (8, 4)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1, 2), (1, 1, 64), (17, 2, 32), (131, 3, 80), (0, 2, 16), (2, 16, 4, 128))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def round_trip(x: Tensor, bits: int) -> Tensor:
    return dequantise(*quantise(x, bits), bits, x.dtype)


def bound(x: Tensor, scales: Tensor) -> Tensor:
    """The error that an element may have, by row: half a scale, and the rounding of its dtype."""
    magnitude = x.double().abs().amax(dim=-1, keepdim=True)
    return scales[..., :1].double() / 2 + torch.finfo(x.dtype).eps * magnitude + 1e-44


def assert_within_bound(x: Tensor, bits: int) -> None:
    codes, scales = quantise(x, bits)
    error = (dequantise(codes, scales, bits, x.dtype).double() - x.double()).abs()
    assert (error <= bound(x, scales)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_comes_back_in_its_shape_and_dtype_within_half_a_scale(shape, bits, dtype):
    x = draw(*shape).to(dtype)
    codes, scales = quantise(x, bits)
    assert codes.shape == (*shape[:-1], codes_per_row(shape[-1], bits))
    assert codes.dtype == torch.uint8
    assert scales.shape == (*shape[:-1], 2)
    back = dequantise(codes, scales, bits, dtype)
    assert (back.shape, back.dtype) == (x.shape, dtype)
    if x.numel():
        assert_within_bound(x, bits)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("offset", [0.0, 3.0, -100.0])
def test_minimum_and_scale_enclose_the_row_closely(offset, bits):
    x = draw(500, 64) + offset
    _, scales = quantise(x, bits)
    low, high = x.amin(dim=-1).double(), x.amax(dim=-1).double()
    scale, minimum = scales.double().unbind(dim=-1)
    top = minimum + (2**bits - 1) * scale
    assert (minimum <= low).all()
    assert (minimum >= low - 2**-7 * low.abs()).all()
    assert (top >= high - 1e-5).all()
    assert (top - minimum <= (1 + 2**-7) * (high - minimum + 1e-5)).all()


@pytest.mark.parametrize(("bits", "percent"), [(8, 0.56), (4, 9.2)])
def test_gaussian_rows_come_back_as_near_as_so_many_bits_can(bits, percent):
    x = draw(2000, 64)
    error = (round_trip(x, bits) - x).square().mean().sqrt() / x.square().mean().sqrt()
    assert 0.9 * percent < 100 * error < percent


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_an_outlier_costs_its_own_row_and_no_other(bits, dtype):
    x = draw(3, 2, 64).to(dtype)
    alone = round_trip(x, bits)
    x[1, 1, 7] = 6e4
    back = round_trip(x, bits)
    assert_within_bound(x, bits)
    alone[1, 1] = back[1, 1]
    assert torch.equal(back, alone)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("magnitude", [1e30, -1e30, 65536.0, 1e-30, 1e-38, 1e-42])
def test_huge_and_tiny_elements_are_kept_within_the_bound(magnitude, bits):
    x = draw(4, 32)
    x[:2] *= magnitude
    x[2, 3] = magnitude
    assert round_trip(x, bits).isfinite().all()
    assert_within_bound(x, bits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 2.0**-120, -240.0])
def test_a_row_of_equal_elements_is_exact(value, bits, dtype):
    x = torch.full((3, 2, 16), value, dtype=dtype)
    assert torch.equal(round_trip(x, bits), x)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [1.001, -1.001, 1.003, -1.003, 12345.678])
def test_a_constant_that_bfloat16_does_not_hold_is_kept_nearly(value, bits):
    x = torch.full((1, 16), value)
    error = (round_trip(x, bits) - x).abs().max().item()
    assert error <= 2**-7 * abs(value) / (2**bits - 1)


@pytest.mark.parametrize("bits", BITS)
def test_every_code_is_used_and_means_its_own_level(bits):
    order = torch.randperm(2**bits, generator=torch.Generator().manual_seed(0))
    row = order.float() / 4 - 7
    codes, scales = quantise(row, bits)
    assert scales.tolist() == [0.25, -7]
    assert torch.equal(dequantise(codes, scales, bits, torch.float32), row)


def test_four_bits_pack_the_first_half_low_and_the_second_high():
    # Minimum 0, scale 1: the codes are the elements.
    x = torch.tensor([[0.0, 1, 2, 3, 15, 14, 13, 12]])
    codes, scales = quantise(x, 4)
    assert scales.tolist() == [[1, 0]]
    assert codes.tolist() == [[0xF0, 0xE1, 0xD2, 0xC3]]
    assert torch.equal(dequantise(codes, scales, 4, torch.float32), x)


@pytest.mark.parametrize("bits", BITS)
def test_zeroed_memory_reads_as_zeros(bits):
    codes = torch.zeros(3, codes_per_row(16, bits), dtype=torch.uint8)
    back = dequantise(codes, torch.zeros(3, 2, dtype=torch.bfloat16), bits, torch.float32)
    assert torch.equal(back, torch.zeros(3, 16))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_is_not_read_as_numbers(value, bits):
    x = draw(3, 16)
    x[1, 5] = value
    back = round_trip(x, bits)
    assert back[1].isnan().all()
    assert back[[0, 2]].isfinite().all()


@pytest.mark.parametrize("bits", BITS)
def test_views_are_taken_as_they_are(bits):
    merged = draw(5, 6, 32)
    view = merged[:, 2:4]
    assert torch.equal(round_trip(view, bits), round_trip(view.contiguous(), bits))
    assert torch.equal(merged, draw(5, 6, 32))


@settings(max_examples=200, deadline=None)
@given(
    row=st.lists(
        st.floats(min_value=-(2.0**100), max_value=2.0**100, width=32),
        min_size=2,
        max_size=40,
    ).filter(lambda row: len(row) % 2 == 0),
    bits=st.sampled_from(BITS),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
)
def test_no_finite_row_is_further_off_than_the_bound(row, bits, dtype):
    assert_within_bound(torch.tensor([row]).to(dtype), bits)
