"""The C++ linear layers against torch."""

import pytest
import torch
import torch.nn.functional as F

from vlmflow_engine.kernels.cpu.linear import linear_functions, packed_bytes
from vlmflow_engine.layers.int8_weight import quantise_rows

functions = linear_functions()
pytestmark = pytest.mark.skipif(functions is None, reason="takes AVX512-BF16 and a C++ compiler")

# out_features and in_features: whole panels and steps, parts of them, more than a stretch of steps.
SHAPES = [(64, 32), (1, 2), (100, 54), (130, 588), (192, 2050)]
ROWS = [1, 2, 5, 6, 7, 13, 24, 25, 241]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).bfloat16()


def bf16_layer(weight: torch.Tensor, bias: torch.Tensor | None = None):
    assert functions is not None
    packed = torch.empty(packed_bytes(*weight.shape, 2), dtype=torch.uint8)
    functions.pack_bf16(weight, packed)
    return lambda x: functions.linear_bf16(x, packed, bias, len(weight))


def int8_layer(weight: torch.Tensor, bias: torch.Tensor | None = None):
    assert functions is not None
    packed = torch.empty(packed_bytes(*weight.shape, 1), dtype=torch.uint8)
    scales = torch.empty(len(weight))
    functions.pack_int8(weight, packed, scales)
    return lambda x: functions.linear_int8(x, packed, scales, bias)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """What 8 bits keep of a matrix, in float64."""
    codes, scales = quantise_rows(x)
    return codes.double() * scales.double()[:, None]


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bfloat16_is_the_product_rounded_once(shape, num_rows):
    weight, bias, x = draw(*shape), draw(shape[0], seed=1), draw(num_rows, shape[1], seed=2)
    expected = F.linear(x.double(), weight.double(), bias.double())
    # Sums in float32; the result has 8 bits.
    tolerance = {"rtol": 2**-8, "atol": 1e-5 * shape[1] ** 0.5}
    torch.testing.assert_close(bf16_layer(weight, bias)(x).double(), expected, **tolerance)


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_is_the_product_of_what_8_bits_keep(shape, num_rows):
    weight, bias, x = draw(*shape), draw(shape[0], seed=1), draw(num_rows, shape[1], seed=2)
    expected = F.linear(rounded(x), rounded(weight), bias.double())
    tolerance = {"rtol": 2**-8, "atol": 1e-5 * shape[1] ** 0.5}
    torch.testing.assert_close(int8_layer(weight, bias)(x).double(), expected, **tolerance)


@pytest.mark.parametrize("num_rows", [1, 7, 241])
@pytest.mark.parametrize("shape", [(128, 54), (384, 2050)], ids=str)
@pytest.mark.parametrize("is_int8", [False, True], ids=["bfloat16", "int8"])
def test_a_gated_layer_rounds_only_what_comes_out(shape, num_rows, is_int8):
    assert functions is not None
    weight, bias, x = draw(*shape), draw(shape[0], seed=1), draw(num_rows, shape[1], seed=2)
    packed = torch.empty(packed_bytes(*shape, 1 if is_int8 else 2), dtype=torch.uint8)
    if is_int8:
        scales = torch.empty(shape[0])
        functions.pack_int8(weight, packed, scales)
        found = functions.linear_int8(x, packed, scales, bias, is_gated=True)
        whole = F.linear(rounded(x), rounded(weight), bias.double())
    else:
        functions.pack_bf16(weight, packed)
        found = functions.linear_bf16(x, packed, bias, shape[0], is_gated=True)
        whole = F.linear(x.double(), weight.double(), bias.double())
    gate, up = whole.chunk(2, dim=1)
    tolerance = {"rtol": 2**-8, "atol": 1e-4 * shape[1] ** 0.5}
    torch.testing.assert_close(found.double(), F.silu(gate) * up, **tolerance)


def test_a_gate_is_shut_or_open_however_large_its_input():
    assert functions is not None
    weight = torch.zeros(128, 2, dtype=torch.bfloat16)
    weight[:64, 0] = weight[64:, 1] = 1
    packed = torch.empty(packed_bytes(128, 2, 2), dtype=torch.uint8)
    functions.pack_bf16(weight, packed)
    gates = [-1e30, -200.0, -88.0, -1.0, 0.0, 1.0, 88.0, 200.0, 1e30, float("nan")]
    x = torch.tensor([[gate, 3.0] for gate in gates]).bfloat16()
    found = functions.linear_bf16(x, packed, None, 128, is_gated=True)[:, 0].float()
    expected = F.silu(x[:, 0].float()) * 3
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("make", [bf16_layer, int8_layer])
def test_a_row_has_the_same_bits_among_any_others(make):
    layer, x = make(draw(100, 1540)), draw(300, 1540, seed=1)
    alone = torch.cat([layer(x[row : row + 1]) for row in range(0, 300, 37)])
    assert torch.equal(layer(x)[::37], alone)


@pytest.mark.parametrize("make", [bf16_layer, int8_layer])
@pytest.mark.parametrize("num_threads", [2, 3])
def test_threads_share_the_work_and_change_no_bit(make, num_threads):
    layer, x = make(draw(700, 96)), draw(500, 96, seed=1)
    expected = layer(x)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        assert torch.equal(layer(x), expected)
        assert torch.equal(make(draw(700, 96))(x), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("make", [bf16_layer, int8_layer])
def test_inputs_may_be_views_and_have_any_leading_dimensions(make):
    layer, x = make(draw(70, 24)), draw(6, 5, 48, seed=1)
    for view in (x[..., :24], x[:, 1:, 24:], x[::2, 0, :24], x[:0, :, :24], x.mT[:, 24:].mT):
        expected = layer(view.reshape(-1, 24).contiguous()).view(*view.shape[:-1], 70)
        assert torch.equal(layer(view), expected)


@pytest.mark.parametrize("make", [bf16_layer, int8_layer])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_harms_itself_alone(make, value):
    layer, x = make(draw(70, 24)), draw(9, 24, seed=1)
    expected = layer(x)
    x[4, 7] = value
    found = layer(x)
    assert not found[4].isfinite().any()
    assert torch.equal(found[[0, 1, 2, 3, 5, 6, 7, 8]], expected[[0, 1, 2, 3, 5, 6, 7, 8]])


def test_rows_of_zeros_give_the_bias_in_8_bits():
    weight, bias = draw(70, 24), draw(70, seed=1)
    weight[3] = 0
    layer = int8_layer(weight, bias)
    assert torch.equal(layer(torch.zeros(2, 24, dtype=torch.bfloat16)), bias.expand(2, -1))
    assert torch.equal(layer(draw(5, 24, seed=2))[:, 3], bias[3].expand(5))
