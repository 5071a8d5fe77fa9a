"""Norms, against transformers' and torch's own."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from vlmflow_engine.layers.norm import LayerNorm, RMSNorm

DTYPES = {torch.float32: 1e-6, torch.bfloat16: 4e-2, torch.float16: 4e-3}


@torch.inference_mode()
@pytest.mark.parametrize("eps", [1e-6, 0.5])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items(), ids=map(str, DTYPES))
def test_rms_norm_is_llamas(dtype, tolerance, eps):
    generator = torch.Generator().manual_seed(0)
    theirs = LlamaRMSNorm(48, eps=eps).to(dtype)
    theirs.weight.copy_(torch.randn(48, generator=generator))
    x = (3 * torch.randn(17, 48, generator=generator)).to(dtype)
    actual = RMSNorm(theirs.weight, eps)(x)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, theirs(x), rtol=0, atol=tolerance)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rms_norm_squares_in_float32(dtype):
    x = torch.full((1, 64), 300.0, dtype=dtype)  # its square is beyond float16
    actual = RMSNorm(torch.ones(64, dtype=dtype), 1e-6)(x)
    torch.testing.assert_close(actual, torch.ones(1, 64, dtype=dtype))


@torch.inference_mode()
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_layer_norm_is_torchs(eps):
    generator = torch.Generator().manual_seed(0)
    theirs = torch.nn.LayerNorm(48, eps=eps)
    theirs.weight.copy_(torch.randn(48, generator=generator))
    theirs.bias.copy_(torch.randn(48, generator=generator))
    x = 3 * torch.randn(17, 48, generator=generator) + 1
    torch.testing.assert_close(LayerNorm(theirs.weight, theirs.bias, eps)(x), theirs(x))
