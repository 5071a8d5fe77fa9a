"""The C++ norms are torch's in float32, rounded once, at every instruction set."""

import pytest
import torch
import torch.nn.functional as F

from vlmflow_engine.kernels.cpu.norms import add_rms_norm, layer_norm, rms_norm

EPS = 1e-3
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
shapes = pytest.mark.parametrize("shape", [(1, 1), (17, 131), (3, 5, 16), (2, 1, 1, 100)], ids=str)


def _random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, generator=generator) + 1).to(dtype)


def _check(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCES[dtype]
    assert actual.dtype == dtype and actual.is_contiguous()
    torch.testing.assert_close(actual.float(), expected, rtol=tolerance, atol=tolerance)


@dtypes
@shapes
def test_rms_norm_is_torchs(level, shape, dtype):
    x, weight = _random(*shape, dtype=dtype), _random(shape[-1], dtype=dtype, seed=1)
    expected = F.rms_norm(x.float(), weight.shape, weight.float(), EPS)
    _check(rms_norm(x, weight, EPS), expected, dtype)


@dtypes
@shapes
def test_a_sum_is_kept_as_torch_rounds_it_and_then_normed(level, shape, dtype):
    x, residual = _random(*shape, dtype=dtype), _random(*shape, dtype=dtype, seed=2)
    weight = _random(shape[-1], dtype=dtype, seed=1)
    before = x.clone()
    normed, total = add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(total, x + residual) and torch.equal(x, before)
    _check(normed, F.rms_norm(total.float(), weight.shape, weight.float(), EPS), dtype)


@dtypes
@shapes
def test_layer_norm_is_torchs(level, shape, dtype):
    x, weight = _random(*shape, dtype=dtype), _random(shape[-1], dtype=dtype, seed=1)
    bias = _random(shape[-1], dtype=dtype, seed=2)
    expected = F.layer_norm(x.float(), weight.shape, weight.float(), bias.float(), EPS)
    _check(layer_norm(x, weight, bias, EPS), expected, dtype)


@dtypes
def test_heads_of_a_merged_layer_are_read_where_they_lie(library, dtype):
    merged = _random(7, 9, 24, dtype=dtype)
    q, weight = merged[:, 2:6], _random(24, dtype=dtype, seed=1)
    assert torch.equal(rms_norm(q, weight, EPS), rms_norm(q.contiguous(), weight, EPS))
    assert not torch.equal(rms_norm(q, weight, EPS)[1:], rms_norm(merged[:-1, 2:6], weight, EPS))


def test_the_mean_may_be_large(level):
    x = _random(5, 64, dtype=torch.float32) / 3 + 10_000
    ones, zeros = torch.ones(64), torch.zeros(64)
    expected = F.layer_norm(x.double(), (64,), eps=EPS)
    actual = layer_norm(x, ones, zeros, EPS)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-2)


def test_rows_have_the_same_bits_on_any_number_of_threads(library):
    x, weight = _random(300, 512, dtype=torch.bfloat16), _random(512, dtype=torch.bfloat16)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(rms_norm(x, weight, EPS))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)
    assert torch.equal(results[0][299:], rms_norm(x[299:], weight, EPS))


def test_a_nan_stays_in_its_row(level):
    x, weight = _random(3, 40, dtype=torch.bfloat16), torch.ones(40, dtype=torch.bfloat16)
    x[1, 7] = torch.nan
    is_nan = rms_norm(x, weight, EPS).isnan()
    assert is_nan[1].all() and not is_nan[[0, 2]].any()
