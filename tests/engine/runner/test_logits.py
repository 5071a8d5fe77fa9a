"""Edits of logits, against transformers' processors over many requests at once."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.runner.sequences import Spelling, make_sequence, transformers_scores
from vlmflow_engine.runner.logits import edit_logits, is_edited
from vlmflow_engine.sequence import Sequence

VOCAB_SIZE = 300


def edit(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    edited = logits.clone()
    assert edit_logits(edited, list(enumerate(sequences))) == {}
    return edited


def make_any_sequence(rng: random.Random) -> Sequence:
    """A greedy request with any of the options, or with none."""
    output = rng.choices(range(VOCAB_SIZE), k=rng.randrange(30))
    if rng.random() < 0.2:
        return make_sequence(do_sample=False, position=len(output) + 1, output=output)
    options: dict[str, Any] = {}
    if rng.random() < 0.5:
        options["repetition_penalty"] = rng.choice([0.7, 1.2, 3.0])
    if rng.random() < 0.5:
        options["bad_token_ids"] = rng.choices(range(VOCAB_SIZE), k=rng.randrange(40))
    if rng.random() < 0.5:
        options["min_new_tokens"] = rng.randrange(30)
    if rng.random() < 0.3:
        factor = rng.random()
        options["logits_processors"] = [lambda ids, row: row * factor + len(ids)]
    # Some are completed by what was generated last, some begin before the output does.
    ends = [output[-size:] for size in range(1, min(4, len(output)) + 1)] + [[0, *output]]
    banned = {
        (*rng.choice(ends), *rng.choices(range(VOCAB_SIZE), k=rng.randrange(1, 3)))
        for _ in range(rng.randrange(5))
    } | {(rng.randrange(VOCAB_SIZE),) for _ in range(rng.randrange(3))}
    return make_sequence(
        do_sample=False,
        position=len(output) + rng.randrange(1, 4),
        output=output,
        banned=tuple(banned),
        stop=rng.choices(range(VOCAB_SIZE), k=rng.randrange(4)),
        **options,
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_batch_of_any_requests_is_edited_as_transformers_edits_each(seed):
    rng = random.Random(seed)
    sequences = [make_any_sequence(rng) for _ in range(64)]
    logits = torch.randn(64, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 5
    expected = torch.stack(
        [transformers_scores(row, item) for row, item in zip(logits, sequences, strict=True)]
    )
    edited = edit(logits, sequences)
    assert torch.equal(edited, expected)
    changed = (edited != logits).any(dim=-1).tolist()
    claimed = [is_edited(sequence) for sequence in sequences]
    assert all(claim or not change for claim, change in zip(claimed, changed, strict=True))
    assert 0 < sum(claimed) < 64


@pytest.mark.parametrize(
    "options",
    [
        {"grammar": Spelling({1})},
        {"logits_processors": [lambda ids, row: row]},
        {"repetition_penalty": 0.9},
        {"bad_token_ids": [1]},
        {"banned": ((1,),)},
        {"banned": ((1, 2),)},
        {"min_new_tokens": 1},
    ],
    ids=str,
)
def test_each_option_by_itself_counts_as_an_edit(options):
    assert is_edited(make_sequence(**options))
    assert not is_edited(make_sequence(min_new_tokens=0, logits_processors=[], bad_token_ids=[]))


def test_only_generated_tokens_are_penalised():
    sequence = make_sequence(position=4, output=[5, 5], repetition_penalty=2.0)
    assert sequence.token_ids == [0, 0, 5, 5]
    assert edit(torch.ones(1, 8), [sequence]).tolist() == [[1, 1, 1, 1, 1, 0.5, 1, 1]]


def test_ids_that_the_model_does_not_have_are_passed_over():
    sequence = make_sequence(
        bad_token_ids=[2, 8, 10**6], banned=((0, 9), (9,)), stop=[3, 70_000], min_new_tokens=1
    )
    assert edit(torch.zeros(1, 8), [sequence]).isinf().nonzero().tolist() == [[0, 2], [0, 3]]


def test_stopping_is_allowed_where_a_grammar_leaves_nothing_else():
    logits = torch.zeros(2, 8)
    sequences = [
        make_sequence(grammar=Spelling(allowed), stop=[3, 4], min_new_tokens=5)
        for allowed in ({3}, {3, 6})
    ]
    assert edit(logits, sequences).isfinite().nonzero().tolist() == [[0, 3], [1, 6]]


def test_a_processor_gets_the_generated_ids_and_one_row():
    seen: list[tuple[list[int], torch.dtype, torch.Size]] = []

    def look(ids: Tensor, row: Tensor) -> Tensor:
        seen.append((ids.tolist(), ids.dtype, row.shape))
        return row

    sequences = [
        make_sequence(position=4, output=output, logits_processors=[look])
        for output in ([], [7, 5, 7])
    ]
    edit(torch.zeros(2, 8), sequences)
    shape = torch.Size([8])
    assert seen == [([], torch.int64, shape), ([7, 5, 7], torch.int64, shape)]


def test_a_grammar_that_fails_is_the_error_of_its_request_alone():
    logits = torch.zeros(4, 8)
    grammars = [Spelling({2}), Spelling(), None, Spelling({3, 4})]
    sequences = [make_sequence(grammar=grammar, bad_token_ids=[1]) for grammar in grammars]
    errors = edit_logits(logits, list(enumerate(sequences)))
    assert list(errors) == [1] and "the grammar failed: IndexError" in errors[1]
    finite = [row.isfinite().nonzero().flatten().tolist() for row in logits]
    assert [finite[0], finite[2], finite[3]] == [[2], [0, *range(2, 8)], [3, 4]]
