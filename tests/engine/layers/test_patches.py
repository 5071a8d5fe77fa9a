"""A linear layer over cut patches is a convolution whose stride is its kernel."""

import pytest
import torch
import torch.nn.functional as F

from vlmflow_engine.layers.patches import cut_patches


@pytest.mark.parametrize(("height", "width", "size"), [(28, 28, 14), (21, 35, 7), (30, 17, 4)])
def test_patches_are_those_of_a_convolution(height, width, size):
    pixels, kernel = torch.randn(2, 3, height, width), torch.randn(5, 3, size, size)
    expected = F.conv2d(pixels, kernel, stride=size).flatten(2).transpose(1, 2)
    patches = cut_patches(pixels, size)
    torch.testing.assert_close(patches @ kernel.flatten(1).T, expected, rtol=1e-4, atol=1e-4)
