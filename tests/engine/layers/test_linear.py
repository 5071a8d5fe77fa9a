"""Linear layers, against torch's own."""

import pytest
import torch

from vlmflow_engine.layers.linear import Linear


@torch.inference_mode()
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear_is_torchs(has_bias):
    theirs = torch.nn.Linear(7, 5, bias=has_bias)
    x = torch.randn(3, 17, 7)
    torch.testing.assert_close(Linear(theirs.weight, theirs.bias)(x), theirs(x))


@pytest.mark.parametrize("has_bias", [False, True])
def test_merged_layers_give_their_parts_outputs_side_by_side(has_bias):
    parts = [
        Linear(torch.randn(size, 7), torch.randn(size) if has_bias else None) for size in (4, 2, 3)
    ]
    x = torch.randn(17, 7)
    merged = Linear.merged(parts)
    torch.testing.assert_close(merged(x), torch.cat([part(x) for part in parts], dim=-1))
