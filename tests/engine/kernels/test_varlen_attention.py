"""Full attention inside segments, in Triton's interpreter against float64."""

import pytest
import torch
from torch import Tensor

from vlmflow_engine.kernels.varlen_attention import (
    HEAD_DIMS,
    WINDOW,
    varlen_attention,
    varlen_attention_reference,
)

# Of the result's largest element. bfloat16: probabilities and the result are truncated to 8 bits.
TOLERANCES = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# Whole windows, those of an image's right and bottom edges, and the corner.
WINDOWS = [64, 64, 48, 64, 32, 16, 4, 1]


def draw(
    lengths: list[int],
    *,
    num_heads: int = 2,
    head_dim: int = 80,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k and v as a merged layer hands them on, and the segments' starts."""
    generator = torch.Generator().manual_seed(sum(lengths) + head_dim)
    qkv = torch.randn(sum(lengths), 3, num_heads, head_dim, generator=generator).to(dtype)
    starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return *qkv.unbind(1), starts


def assert_is_reference(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, *, scale: float | None = None
) -> None:
    out = torch.full(q.shape, float("nan"), dtype=q.dtype)
    max_length = int(starts.diff().max())
    returned = varlen_attention(q, k, v, starts, max_length, scale=scale, out=out)
    assert returned is out
    expected = varlen_attention_reference(q, k, v, starts, scale=scale).double()
    tolerance = TOLERANCES[q.dtype] * expected.abs().max().item()
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_long_segments_are_attended_at_every_head_dim(head_dim, dtype):
    assert_is_reference(*draw([131, 1, 127], num_heads=1, head_dim=head_dim, dtype=dtype))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_windows_and_the_ragged_ones_at_edges_are_attended(head_dim, dtype):
    assert_is_reference(*draw(WINDOWS, head_dim=head_dim, dtype=dtype))


@pytest.mark.parametrize("head_dim", [1, 8, 16, 24, 40, 96, 112, 160])
def test_other_head_dims_are_attended_too(head_dim):
    assert_is_reference(*draw([65, 33], head_dim=head_dim))


@pytest.mark.parametrize(
    "lengths",
    [[1], [127], [129], [256, 1], [1, 256], [0, 200, 0, 0, 3, 0], [1] * 9 + [130], [257, 128, 0]],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_segments_of_any_length_are_attended(lengths, dtype):
    assert_is_reference(*draw(lengths, num_heads=1, head_dim=16, dtype=dtype))


def test_no_segments_are_no_work():
    q, k, v, starts = draw([])
    assert varlen_attention(q, k, v, starts, 0).shape == (0, 2, 80)
    q, k, v, starts = draw([0, 0])
    assert varlen_attention(q, k, v, starts, 0).shape == (0, 2, 80)


# The interpreter is numpy, which warns of what it is given.
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.parametrize("lengths", [[130, 131, 129], [3, 64, 5]], ids=["long", "windows"])
def test_a_segment_that_is_not_finite_stays_its_own(lengths):
    q, k, v, starts = draw(lengths, dtype=torch.bfloat16)
    expected = varlen_attention_reference(q, k, v, starts)
    own = slice(int(starts[1]), int(starts[2]))
    for x in (q, k, v):
        x[own] = float("nan")
    out = varlen_attention(q, k, v, starts, max(lengths))
    assert out[own].isnan().all()
    others = torch.ones(len(q), dtype=torch.bool)
    others[own] = False
    assert (out[others] - expected[others]).abs().max() < TOLERANCES[torch.bfloat16] * 4


def test_scores_far_from_zero_overflow_nothing():
    q, k, v, starts = draw([140, 20])
    for sign in (-1, 1):
        out = varlen_attention(sign * 30 * q, 30 * k, v, starts, 140)
        expected = varlen_attention_reference(sign * 30 * q, 30 * k, v, starts)
        # Scores of some thousands are rounded to about 1e-4.
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-3)


def test_the_scale_is_the_callers():
    assert_is_reference(*draw([70, 20]), scale=0.5)


@pytest.mark.parametrize("max_length", [WINDOW, 1024])
def test_a_segment_gets_the_same_bits_in_whatever_company(max_length):
    lengths = [30, 64, 17, 64]
    q, k, v, starts = draw(lengths, dtype=torch.bfloat16)
    together = varlen_attention(q, k, v, starts, max_length)
    for first, last in zip(starts.tolist()[:-1], starts.tolist()[1:], strict=True):
        own = torch.tensor([0, last - first], dtype=torch.int32)
        alone = varlen_attention(*(x[first:last] for x in (q, k, v)), own, max_length)
        assert torch.equal(together[first:last], alone)


def test_nothing_is_written_beside_the_result():
    q, k, v, starts = draw([40, 70])
    room = torch.full((len(q) + 2, 4, 80), 7.0)
    varlen_attention(q, k, v, starts, 70, out=room[1:-1, 1:3])
    assert (room[[0, -1]] == 7).all()
    assert (room[:, [0, 3]] == 7).all()
    expected = varlen_attention_reference(q, k, v, starts)
    torch.testing.assert_close(room[1:-1, 1:3], expected, rtol=0, atol=1e-5)
