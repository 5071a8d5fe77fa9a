"""A token attends its own segment, all of it and nothing else."""

import pytest
import torch
import torch.nn.functional as F

from vlmflow_engine.kernels.dispatch import interpreting
from vlmflow_engine.layers.segments import Segments


@pytest.mark.parametrize(
    "lengths",
    [[7], [1], [4, 4, 4], [5, 5, 3, 3, 1], [3, 5, 3], [1, 2, 3, 4], [64, 64, 16, 16, 16, 4]],
    ids=str,
)
def test_attention_is_that_under_a_mask_of_blocks(lengths):
    generator = torch.Generator().manual_seed(0)
    # As a merged layer hands them on: not contiguous.
    q, k, v = torch.randn(sum(lengths), 3, 2, 8, generator=generator).unbind(1)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = ids[:, None] == ids
    expected = F.scaled_dot_product_attention(
        *(x.transpose(0, 1) for x in (q, k, v)), attn_mask=mask
    ).transpose(0, 1)
    actual = Segments(lengths).attend(q, k, v)
    assert actual.is_contiguous()
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_neighbours_of_equal_length_are_one_call():
    assert Segments([4, 4, 4, 2, 4, 4]).runs == [(3, 4), (1, 2), (2, 4)]


def test_kernels_are_told_where_each_segment_begins():
    starts = Segments([4, 4, 2, 0, 5])._starts_on(torch.device("cpu"))
    assert starts.dtype == torch.int32
    assert starts.tolist() == [0, 4, 8, 10, 10, 15]


@pytest.mark.parametrize("is_one_size", [False, True])
def test_kernels_attend_as_plain_torch_does(is_one_size):
    generator = torch.Generator().manual_seed(0)
    lengths = [64, 64, 16, 4]
    q, k, v = torch.randn(sum(lengths), 3, 2, 8, generator=generator).unbind(1)
    segments = Segments(lengths, is_one_size=is_one_size)
    with interpreting():
        actual = segments.attend(q, k, v)
    torch.testing.assert_close(actual, segments.attend(q, k, v), rtol=1e-5, atol=1e-6)
