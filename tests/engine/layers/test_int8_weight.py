"""Weights and inputs in 8 bits, by oneDNN and by our kernel."""

import pytest
import torch
import torch.nn.functional as F

from vlmflow_engine.kernels.cpu.linear import linear_functions
from vlmflow_engine.layers.int8_weight import (
    Int8Format,
    Int8Weight,
    OneDnnInt8Weight,
    is_in_8_bits,
    quantise_rows,
)
from vlmflow_engine.layers.packed_weight import OneDnnWeight, PackedFormat


def allocate(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8)


def kept(x: torch.Tensor) -> torch.Tensor:
    codes, scales = quantise_rows(x)
    return codes.double() * scales.double()[:, None]


def test_a_row_is_rounded_to_127ths_of_its_largest_magnitude():
    codes, scales = quantise_rows(torch.tensor([[127.0, -63.5, 0.4], [0.0, 0.0, 0.0]]))
    assert codes.tolist() == [[127, -64, 0], [0, 0, 0]]
    assert scales.tolist() == [1.0, 0.0]


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [0, 1, 5, 70])
def test_onednn_multiplies_what_8_bits_keep(dtype, num_rows):
    weight, bias = torch.randn(33, 50).to(dtype), torch.randn(33).to(dtype)
    x = torch.randn(2, num_rows, 50).to(dtype)
    expected = F.linear(kept(x.flatten(0, 1)), kept(weight), bias.double()).view(2, num_rows, 33)
    found = OneDnnInt8Weight(weight)(x, bias)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype), rtol=1e-2, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("num_rows", [1, 70])
def test_both_kernels_agree(num_rows):
    if (functions := linear_functions()) is None:
        pytest.skip("takes AVX512-BF16 and a C++ compiler")
    weight, bias = torch.randn(130, 54).bfloat16(), torch.randn(130).bfloat16()
    x = torch.randn(num_rows, 54).bfloat16()
    ours = Int8Weight(weight, functions, allocate)(x, bias)
    torch.testing.assert_close(ours, OneDnnInt8Weight(weight)(x, bias), rtol=2**-7, atol=1e-4)


@torch.inference_mode()
def test_a_row_that_is_not_finite_harms_itself_alone():
    layer, x = OneDnnInt8Weight(torch.randn(8, 16)), torch.randn(3, 16)
    expected = layer(x, None)
    for value in (torch.nan, torch.inf):
        x[1, 2] = value
        found = layer(x, None)
        assert found[1].isnan().all()
        assert torch.equal(found[::2], expected[::2])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("text.layers.0.self_attn.q_proj", True),
        ("text.layers.11.mlp.down_proj", True),
        ("lm_head", True),
        ("vision.encoder.layers.3.mlp.fc1", True),
        ("vision.encoder.layer.3.mlp.fc1", True),
        ("vision.blocks.3.attn.qkv", True),
        ("vision.embeddings.patch_embedding", False),
        ("vision.patch_embed.proj", False),
        ("vision.merger.mlp.0", False),
        ("projector.linear_1", False),
    ],
)
def test_large_layers_are_kept_in_8_bits(name, expected):
    assert is_in_8_bits(name) is expected
    weight = Int8Format(None, PackedFormat(None))(torch.randn(4, 4), name, allocate)
    assert isinstance(weight, OneDnnInt8Weight if expected else OneDnnWeight)
