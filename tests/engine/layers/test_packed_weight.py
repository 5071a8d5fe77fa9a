"""Weights packed for a CPU give what torch's own linear layer gives."""

import pytest
import torch
import torch.nn.functional as F

from vlmflow_engine.kernels.cpu.linear import linear_functions
from vlmflow_engine.layers.linear import Linear
from vlmflow_engine.layers.packed_weight import OneDnnWeight, PackedFormat, PackedWeight


def allocate(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8)


@pytest.fixture(params=[False, True], ids=["onednn", "ours"])
def functions(request: pytest.FixtureRequest):
    found = linear_functions() if request.param else None
    if request.param and found is None:
        pytest.skip("takes AVX512-BF16 and a C++ compiler")
    return found


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 3, 70])
@pytest.mark.parametrize("shape", [(96, 64), (5, 7), (33, 18)], ids=str)
def test_a_packed_layer_is_torchs(functions, dtype, num_rows, shape):
    weight, bias = torch.randn(shape).to(dtype), torch.randn(shape[0]).to(dtype)
    x = torch.randn(2, num_rows, shape[1]).to(dtype)
    layer = Linear(PackedFormat(functions)(weight, "", allocate), bias)
    assert layer.weight.shape == shape
    torch.testing.assert_close(layer(x), F.linear(x, weight, bias))
    torch.testing.assert_close(Linear(layer.weight)(x), F.linear(x, weight))


def test_our_kernel_takes_bfloat16_in_pairs_of_inputs_and_onednn_the_rest():
    functions = linear_functions()
    if functions is None:
        pytest.skip("takes AVX512-BF16 and a C++ compiler")
    made = PackedFormat(functions)
    even, odd = torch.zeros(4, 6, dtype=torch.bfloat16), torch.zeros(4, 7, dtype=torch.bfloat16)
    assert isinstance(made(even, "", allocate), PackedWeight)
    assert isinstance(made(odd, "", allocate), OneDnnWeight)
    assert isinstance(made(even.float(), "", allocate), OneDnnWeight)


@torch.inference_mode()
def test_a_row_has_the_same_bits_among_any_others_in_float32():
    layer, x = OneDnnWeight(torch.randn(200, 96)), torch.randn(70, 96)
    alone = torch.cat([layer(row[None], None) for row in x])
    assert torch.equal(layer(x, None), alone)


@torch.inference_mode()
def test_what_is_packed_is_no_part_of_the_stored_matrix(functions):
    """The place that it was read to is the next one's."""
    weight, x = torch.randn(64, 32).bfloat16(), torch.randn(3, 32).bfloat16()
    layer = Linear(PackedFormat(functions)(weight, "", allocate))
    expected = layer(x)
    weight.zero_()
    assert torch.equal(layer(x), expected)
