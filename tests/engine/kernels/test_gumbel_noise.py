"""Noise made by the kernel, bit by bit against that of numpy."""

import pytest
import torch

from vlmflow_engine.kernels.gumbel_noise import gumbel_noise, gumbel_noise_reference


@pytest.mark.parametrize("vocab_size", [1, 5, 1024, 2051])
def test_noise_of_the_kernel_has_the_bits_of_the_reference(vocab_size):
    seeds = torch.tensor([0, 7, -1, -(2**63), 2**62 + 5])
    positions = torch.tensor([0, 1, 2**31 - 1, 70_000, 3], dtype=torch.int32)
    noise = gumbel_noise(seeds, positions, vocab_size)
    expected = gumbel_noise_reference(seeds, positions, vocab_size)
    assert torch.equal(noise.view(torch.int32), expected.view(torch.int32))
    assert len(set(noise[:, 0].tolist())) == 5
