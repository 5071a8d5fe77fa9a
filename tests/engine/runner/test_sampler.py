"""Every option at work on a step's logits, against transformers' processors."""

import pytest
import torch
from torch import Tensor

from tests.engine.runner.distributions import (
    FILTERS,
    LOGITS,
    NUM_DRAWS,
    VOCAB_SIZE,
    assert_distributed,
    draw,
)
from tests.engine.runner.sequences import Spelling, make_sequence, transformers_scores
from vlmflow_engine.runner.sampler import sample


def _favour_late_ids(ids: Tensor, row: Tensor) -> Tensor:
    return row + len(ids) * torch.arange(len(row)) / 40


# What else may change logits before they are filtered; LIKELY are the likeliest tokens, in order.
LIKELY = LOGITS.argsort(descending=True).tolist()
OUTPUT = [LIKELY[0], LIKELY[3], LIKELY[0], LIKELY[5]]
EDITS = {
    "penalty": {"output": OUTPUT, "repetition_penalty": 1.05},
    "penalty_below_1": {"output": OUTPUT, "repetition_penalty": 0.96},
    "penalty_of_negative_logits": {
        "output": OUTPUT,
        "repetition_penalty": 1.6,
        "logits_processors": [lambda ids, row: row - 32],
    },
    "bad_token_ids": {"bad_token_ids": LIKELY[:2]},
    "banned_sequence": {"output": OUTPUT, "banned": ((LIKELY[0], LIKELY[5], LIKELY[1]),)},
    "no_stop_yet": {"output": OUTPUT, "min_new_tokens": 5, "stop": LIKELY[:1]},
    "may_stop_now": {"output": OUTPUT, "min_new_tokens": 4, "stop": LIKELY[-1:]},
    "processor": {"output": OUTPUT, "logits_processors": [lambda ids, row: row.flip(0) + ids[-1]]},
    "all": {
        "output": OUTPUT,
        "repetition_penalty": 1.03,
        "bad_token_ids": LIKELY[2:3],
        "banned": ((LIKELY[5], LIKELY[4]), (LIKELY[5], LIKELY[5], LIKELY[3])),
        "min_new_tokens": 9,
        "stop": LIKELY[1:2],
        "logits_processors": [lambda ids, row: row * 0.7, _favour_late_ids],
    },
}


@pytest.mark.parametrize("filters", [{}, FILTERS["all"]], ids=["unfiltered", "filtered"])
@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)
def test_draws_follow_the_distribution_of_transformers_processors(edits, filters):
    sequences = [
        make_sequence(seed=seed, position=5, **edits, **filters) for seed in range(NUM_DRAWS // 2)
    ]
    expected = transformers_scores(LOGITS, sequences[0]).softmax(dim=-1)
    assert_distributed(draw(LOGITS, sequences), expected.tolist())


def test_a_greedy_request_takes_what_is_likeliest_after_the_same_edits():
    sequences = [make_sequence(do_sample=False, position=5, **edits) for edits in EDITS.values()]
    expected = [int(transformers_scores(LOGITS, sequence).argmax()) for sequence in sequences]
    assert draw(LOGITS, sequences) == expected
    assert len(set(expected)) > 3


@pytest.mark.parametrize("bits", [torch.float32, torch.bfloat16], ids=str)
def test_a_seed_and_a_position_give_the_same_token_alone_and_in_a_batch_of_64(bits):
    generator = torch.Generator().manual_seed(0)
    # A model in bfloat16 gives many tokens the same logit.
    logits = torch.randn(64, 1000, generator=generator).to(bits).float()
    sequences = [
        make_sequence(
            seed=3 * row,
            **{"position": 1 + row % 5, "logprobs": row % 7 or None}
            | list(FILTERS.values())[row % len(FILTERS)]
            | ({"position": 5} | list(EDITS.values())[row % len(EDITS)] if row % 2 else {})
            | ({"top_k": 50} if row % 3 == 0 else {})
            | ({"do_sample": False} if row % 5 == 0 else {}),
        )
        for row in range(64)
    ]
    together = sample(logits, sequences)
    assert len({token.token_id for token in together}) > 32
    assert all(token.error is None for token in together)
    for row, sequence in enumerate(sequences):
        assert sample(logits[row : row + 1], [sequence]) == [together[row]]


def test_greedy_rows_take_the_likeliest_token_whoever_is_sampled_beside_them():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 100, generator=generator)
    sequences = [make_sequence(seed=row, do_sample=row % 3 > 0) for row in range(64)]
    tokens = [token.token_id for token in sample(logits, sequences)]
    greedy, likeliest = tokens[::3], logits.argmax(dim=-1).tolist()
    assert greedy == likeliest[::3]
    assert tokens != likeliest


def test_logits_are_left_as_they_were():
    def clear(ids: Tensor, row: Tensor) -> Tensor:
        return row.zero_()

    logits = LOGITS.repeat(4, 1)
    sample(logits, [make_sequence(seed=row, **FILTERS["all"]) for row in range(4)])
    sample(logits, [make_sequence(seed=row, position=5, **EDITS["all"]) for row in range(4)])
    sample(logits, [make_sequence(logits_processors=[clear])] * 4)
    assert torch.equal(logits, LOGITS.repeat(4, 1))


def test_a_failing_processor_is_the_error_of_its_request_alone():
    def fail(ids: Tensor, row: Tensor) -> Tensor:
        row.fill_(100)
        raise KeyError("no such word")

    kinds: list[dict] = [
        {},
        {"logits_processors": [fail], "logprobs": 2},
        EDITS["penalty"],
        {"logits_processors": [lambda ids, row: None]},
        {"logits_processors": [lambda ids, row: row, lambda ids, row: row[None]]},
    ]
    sequences = [make_sequence(seed=3, position=5, **kind) for kind in kinds]
    tokens = sample(LOGITS.repeat(5, 1), sequences)
    assert [token.error for token in tokens] == [
        None,
        "logits_processors[0] raised KeyError: 'no such word'",
        None,
        "logits_processors[0] must return logits of shape [12], got None",
        "logits_processors[1] must return logits of shape [12], got [1, 12]",
    ]
    assert tokens[1].token_id == -1 and tokens[1].logprobs is None
    for row in (0, 2):
        assert [tokens[row]] == sample(LOGITS[None], [sequences[row]])


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize(
    "edits",
    [
        {"bad_token_ids": list(range(VOCAB_SIZE))},
        {"logits_processors": [lambda ids, row: row - torch.inf]},
        {"logits_processors": [lambda ids, row: row * torch.nan]},
        {"grammar": Spelling(set())},
    ],
    ids=["banned", "minus_infinity", "nan", "grammar"],
)
def test_where_no_token_is_left_the_request_has_an_error_and_its_neighbours_a_token(
    edits, do_sample
):
    sequences = [
        make_sequence(do_sample=False),
        make_sequence(do_sample=do_sample, **edits),
        make_sequence(do_sample=False, bad_token_ids=[LIKELY[0]]),
    ]
    tokens = sample(LOGITS.repeat(3, 1), sequences)
    assert tokens[1].token_id == -1
    assert tokens[1].error is not None and "no token can be chosen" in tokens[1].error
    assert [(tokens[row].token_id, tokens[row].error) for row in (0, 2)] == [
        (LIKELY[0], None),
        (LIKELY[1], None),
    ]


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_grammar_allows_tokens_and_hears_which_one_was_chosen(do_sample):
    grammar = Spelling({LIKELY[7]}, {LIKELY[2], LIKELY[9]}, {LIKELY[4]})
    sequence = make_sequence(do_sample=do_sample, grammar=grammar)
    while sequence.finish_reason is None:
        sequence.append(draw(LOGITS, [sequence])[0])
    assert sequence.output_token_ids == grammar.accepted
    assert grammar.accepted[::2] == [LIKELY[7], LIKELY[4]]
    assert grammar.accepted[1] in (LIKELY[2], LIKELY[9])
    assert sequence.finish_reason == "stop" and not sequence.has_stop_token


def test_processors_see_what_the_grammar_left_and_a_token_it_refuses_is_an_error():
    seen = []

    def bring_back(ids: Tensor, row: Tensor) -> Tensor:
        seen.append(row.isfinite().nonzero().flatten().tolist())
        return torch.zeros_like(row).index_fill(0, torch.tensor([3]), 1.0)

    grammar = Spelling({5, 8}, {1})
    sequence = make_sequence(do_sample=False, grammar=grammar, logits_processors=[bring_back])
    (token,) = sample(LOGITS[None], [sequence])
    assert seen == [[5, 8]]
    assert token.error == "the grammar refuses token 3: no place for 3"
    assert grammar.accepted == []


def test_a_request_with_an_error_of_its_own_leaves_its_grammar_where_it_is():
    grammar = Spelling({5, 8}, {1})
    sequence = make_sequence(grammar=grammar, logits_processors=[lambda ids, row: None])
    assert sample(LOGITS[None], [sequence])[0].error is not None
    assert grammar.accepted == []
