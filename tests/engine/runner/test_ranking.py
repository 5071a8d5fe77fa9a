"""The order of logits, against a stable sort."""

import pytest
import torch

from vlmflow_engine.runner.ranking import likeliest_ids


@pytest.mark.parametrize("count", [1, 2, 50, 999, 1000])
@pytest.mark.parametrize("spread", [1e-30, 0.1, 1.0, 1e30])
def test_ids_come_as_a_stable_sort_has_them(count, spread):
    logits = torch.randn(7, 1000, generator=torch.Generator().manual_seed(count)) * spread
    logits = logits.bfloat16().float()  # many are equal now
    logits[1:4] = logits[1:4].abs()
    logits[2, ::3] = -torch.inf
    logits[3, 5] = torch.inf
    expected = logits.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    assert torch.equal(likeliest_ids(logits, count), expected)


def test_rows_need_not_lie_side_by_side():
    logits = torch.tensor([[1.0, 5.0], [2.0, 4.0], [3.0, 3.0]])
    assert likeliest_ids(logits.T, 3).tolist() == [[2, 1, 0], [0, 1, 2]]


def test_zeros_of_both_signs_are_equal():
    assert likeliest_ids(torch.tensor([[-0.0, 0.0, -0.0, -1.0]]), 4).tolist() == [[0, 1, 2, 3]]


def test_a_nan_is_no_error_and_spoils_no_other_row():
    logits = torch.tensor(
        [[torch.nan] * 3 + [1.0], [1.0, 2.0, 3.0, torch.nan], [4.0, 6.0, 5.0, 0.0]]
    )
    for count in (2, 4):
        assert likeliest_ids(logits, count).shape == (3, count)
    assert likeliest_ids(logits, 2)[2].tolist() == [1, 2]
