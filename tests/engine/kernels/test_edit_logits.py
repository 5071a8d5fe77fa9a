"""Edits by the kernel, bit by bit against the reference."""

import random

import pytest
import torch
from torch import Tensor

from vlmflow_engine.kernels.edit_logits import edit_logits, edit_logits_reference
from vlmflow_engine.kernels.sampling_table import (
    SamplingTable,
    allocate_sampling_table,
    num_words,
)


def random_words(num_rows: int, vocab_size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (num_rows, num_words(vocab_size))
    return torch.randint(-(2**31), 2**31, shape, generator=generator).int()


def make_table(num_rows: int, vocab_size: int) -> SamplingTable:
    """Rows with all combinations of options."""
    table = allocate_sampling_table(num_rows, vocab_size, "cpu")
    for number, words in enumerate((table.seen, table.forbidden, table.stops)):
        words.copy_(random_words(num_rows, vocab_size, number))
    rng = random.Random(0)
    for row in range(num_rows):
        table.penalty[row] = rng.choice([1.0, 0.7, 1.3])
        table.has_forbidden[row] = row % 2
        table.may_stop_at[row] = rng.choice([0, 5, 9])
    return table


@pytest.mark.parametrize("vocab_size", [1, 31, 33, 131, 2100])
@pytest.mark.parametrize("has_grammar", [False, True])
def test_scores_are_the_references(vocab_size, has_grammar):
    table = make_table(12, vocab_size)
    logits = torch.randn(9, vocab_size, generator=torch.Generator().manual_seed(1)) * 3
    rows = torch.tensor([4, 11, 0, -1, 7, 2, 9, 3, 5], dtype=torch.int32)
    positions = torch.tensor([4, 5, 6, 7, 8, 9, 10, 0, 8], dtype=torch.int32)
    grammar = {}
    if has_grammar:
        grammar["allowed"] = random_words(4, vocab_size, 8)
        grammar["allowed_rows"] = torch.tensor([1, -1, 3, 0, 0, -1, 2, 2, 1], dtype=torch.int32)
    before = logits.clone()
    scores = edit_logits(logits, rows, positions, table, **grammar)
    expected = edit_logits_reference(logits, rows, positions, table, **grammar)
    used = rows >= 0
    assert torch.equal(scores[used], expected[used])
    assert torch.equal(logits, before)


def test_stopping_is_left_where_nothing_else_is_in_any_tile():
    vocab_size = 5000
    table = allocate_sampling_table(2, vocab_size, "cpu")
    table.may_stop_at.fill_(10)
    table.stops[:, 0] = 0b110  # tokens 1 and 2
    logits = torch.full((2, vocab_size), -torch.inf)
    logits[:, 1] = 3.0
    logits[1, 4999] = 1.0
    rows = torch.arange(2, dtype=torch.int32)
    positions = torch.zeros(2, dtype=torch.int32)
    scores = edit_logits(logits, rows, positions, table)
    assert scores.isfinite().nonzero().tolist() == [[0, 1], [1, 4999]]
