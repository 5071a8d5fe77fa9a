"""Tokens kept without sorting, against a stable sort: the very same ones, equal logits too."""

import pytest
import torch
from torch import Tensor

from vlmflow_engine.kernels.kept_tokens import kept_tokens, kept_tokens_reference
from vlmflow_engine.kernels.sort_key import NOT_A_NUMBER

OPTIONS = [  # temperature, top_k, top_p
    (1.0, 0, 1.0),
    (1.0, 1, 1.0),
    (1.0, 3, 1.0),
    (0.7, 50, 0.9),
    (1.3, 0, 0.95),
    (1.0, 0, 0.0),
    (1.0, 90, 0.5),
    (2.0, 131, 0.999),
    (1.0, 5000, 0.3),
]


def check(logits: Tensor, options: list[tuple[float, int, float]], rows: list[int]) -> Tensor:
    temperature, top_k, top_p = (torch.tensor(column) for column in zip(*options, strict=True))
    table = {"temperature": temperature, "top_k": top_k.int(), "top_p": top_p}
    which = torch.tensor(rows, dtype=torch.int32)
    kept = kept_tokens(logits, which, **table)
    bits = (logits + 0.0).view(torch.int32)
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    last, ids = kept.keys[:, None], torch.arange(logits.shape[1])
    is_kept = (keys > last) | ((keys == last) & (ids <= kept.ids[:, None]))
    is_kept &= last != NOT_A_NUMBER
    assert torch.equal(is_kept, kept_tokens_reference(logits, which, **table))
    return is_kept


@pytest.mark.parametrize("vocab_size", [1, 63, 64, 65, 131, 1100])
def test_of_random_logits_those_of_a_sort_are_kept(vocab_size):
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(9, vocab_size, generator=generator) * 3
    logits[::2] = logits[::2].bfloat16().float()
    check(logits, OPTIONS, list(range(9)))


def test_of_equal_logits_those_with_lower_ids_are_kept():
    kept = check(torch.zeros(9, 200), OPTIONS, list(range(9)))
    assert kept.sum(dim=1).tolist() == [200, 1, 3, 45, 191, 1, 45, 131, 61]
    steps = (torch.arange(200) % 3).float().repeat(9, 1)
    check(steps, OPTIONS, list(range(9)))


def test_zeros_of_both_signs_are_equal():
    logits = torch.tensor([[-0.0, 0.0, -0.0, 0.0]])
    assert check(logits, [(1.0, 2, 1.0)], [0]).tolist() == [[True, True, False, False]]


def test_of_a_row_without_tokens_nothing_is_kept_and_of_an_infinity_that_alone():
    logits = torch.ones(5, 100)
    logits[0, 70] = torch.nan
    logits[1] = -torch.inf
    logits[2, 40] = logits[2, 50] = torch.inf
    logits[3, :99] = -torch.inf
    kept = check(logits, [(1.0, 0, 0.9)], [0, 0, 0, 0, -1])
    assert kept.sum(dim=1).tolist() == [0, 0, 1, 1, 0]
    assert kept[2, 40] and kept[3, 99]


def test_rows_may_lie_apart_and_know_their_options_by_number():
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(0))[:, :260]
    kept = check(logits, OPTIONS, [3, 1, 2])
    assert kept[1:].sum(dim=1).tolist() == [1, 3]
