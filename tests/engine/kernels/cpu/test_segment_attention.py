"""The C++ kernels attend vision towers' segments as torch does, at every instruction set."""

import pytest
import torch

from vlmflow_engine.kernels.cpu.segment_attention import (
    can_attend_segments,
    segment_attention,
    segment_metadata,
)
from vlmflow_engine.kernels.vit_attention import torch_attention
from vlmflow_engine.layers.segments import Segments

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def _rows(num_tokens: int, heads: int, head_dim: int, dtype: torch.dtype):
    """Queries, keys and values as a merged layer hands them on: not contiguous."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_tokens, 3, heads, head_dim, generator=generator).to(dtype).unbind(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("lengths", "head_dim"),
    [
        ([1], 64),
        ([64, 64], 80),
        ([17, 131, 131, 1], 72),
        ([0, 5, 0, 70, 63, 65, 0], 16),
        ([200], 6),
    ],
    ids=str,
)
def test_segments_are_attended_as_torch_does(level, lengths, head_dim, dtype):
    q, k, v = _rows(sum(lengths), 3, head_dim, dtype)
    expected = torch_attention(*(x.float() for x in (q, k, v)), [(1, n) for n in lengths])
    actual = segment_attention(q, k, v, segment_metadata(lengths))
    assert actual.is_contiguous() and actual.dtype == dtype
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(actual.float(), expected, rtol=tolerance, atol=tolerance)


def test_an_image_has_the_same_bits_whoever_is_beside_it(library):
    q, k, v = _rows(31 + 90 + 7, 2, 64, torch.bfloat16)
    together = segment_attention(q, k, v, segment_metadata([31, 90, 7]))
    alone = segment_attention(q[31:121], k[31:121], v[31:121], segment_metadata([90]))
    assert torch.equal(together[31:121], alone)


def test_towers_in_bfloat16_are_attended_by_them(library):
    q, k, v = _rows(40, 2, 64, torch.bfloat16)
    assert can_attend_segments(q)
    actual = Segments([30, 10]).attend(q, k, v)
    assert torch.equal(actual, segment_attention(q, k, v, segment_metadata([30, 10])))
    assert not torch.equal(actual, torch_attention(q, k, v, [(1, 30), (1, 10)]))


def test_a_pass_without_a_token_needs_no_kernel():
    q, k, v = _rows(0, 2, 64, torch.bfloat16)
    assert Segments([]).attend(q, k, v).shape == (0, 2, 64)
