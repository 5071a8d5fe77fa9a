"""Sampling, against the exact distribution that its filters leave."""

import math
from collections import Counter
from collections.abc import Sequence as AbstractSequence

import pytest
import torch
from torch import Tensor

from tests.engine.runner.sequences import Spelling, make_sequence, transformers_scores
from vlmflow_engine.runner.sampler import sample, uniform
from vlmflow_engine.sequence import Sequence

VOCAB_SIZE = 12
NUM_DRAWS = 4000
# Unordered, no two alike, from likely to rare; shifted, for softmax must not care.
LOGITS = torch.tensor([0.3, 2.4, -1.1, 1.7, 0.9, -0.4, 2.1, 0.0, 1.2, -0.8, 0.6, 1.5]) + 30

FILTERS = {
    "plain": {},
    "cold": {"temperature": 0.4},
    "hot": {"temperature": 1.9},
    "top_k": {"top_k": 4},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.3},
    "top_k_beyond_the_vocabulary": {"top_k": 50},
    "top_k_and_top_p": {"top_k": 6, "top_p": 0.6},
    "top_k_and_min_p": {"top_k": 8, "min_p": 0.2},
    "top_p_and_min_p": {"top_p": 0.8, "min_p": 0.35},
    "all": {"temperature": 1.4, "top_k": 9, "top_p": 0.9, "min_p": 0.15},
}


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


def draw(logits: Tensor, sequences: AbstractSequence[Sequence]) -> list[int]:
    """Sample all sequences from the same logits."""
    return [token.token_id for token in sample(logits.expand(len(sequences), -1), sequences)]


def exact_probabilities(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> list[float]:
    """Temperature, top-k, top-p of what is left, min-p of the likeliest; token by token."""
    weights = [math.exp((value - 30) / temperature) for value in logits.tolist()]
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    order = order[: top_k or len(order)]
    total, mass, kept = sum(weights[token] for token in order), 0.0, []
    for token in order:
        if mass / total <= top_p and weights[token] >= min_p * weights[order[0]]:
            kept.append(token)
        mass += weights[token]
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(weights))]


def assert_distributed(
    tokens: AbstractSequence[int], probabilities: AbstractSequence[float]
) -> None:
    """Pearson's chi-square test at 0.1 %; the draws are fixed, so it passes or fails for ever."""
    counts, rest = Counter(tokens), [0.0, 0.0]  # [observed, expected] of all rare tokens together
    cells = [rest]
    for token, probability in enumerate(probabilities):
        observed, expected = counts[token], probability * len(tokens)
        assert expected > 0 or observed == 0, f"token {token} should be filtered out"
        if expected >= 5:
            cells.append([observed, expected])
        else:
            rest[0] += observed
            rest[1] += expected
    assert sum(observed for observed, _ in cells) == len(tokens)
    cells = [cell for cell in cells if cell[1] > 0]
    if len(cells) > 1:
        statistic = sum((observed - expected) ** 2 / expected for observed, expected in cells)
        halves = torch.tensor([(len(cells) - 1) / 2, statistic / 2], dtype=torch.float64)
        assert torch.special.gammaincc(*halves) > 1e-3


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_draws_over_seeds_follow_the_filtered_distribution(filters):
    sequences = [make_sequence(seed=seed, **filters) for seed in range(NUM_DRAWS)]
    assert_distributed(draw(LOGITS, sequences), exact_probabilities(LOGITS, **filters))


@pytest.mark.parametrize("filters", [FILTERS["plain"], FILTERS["all"]], ids=["plain", "all"])
def test_draws_over_positions_follow_the_filtered_distribution(filters):
    sequence = make_sequence(seed=7, **filters)
    tokens = []
    for _ in range(NUM_DRAWS):
        tokens += draw(LOGITS, [sequence])
        sequence.append(0)
    assert_distributed(tokens, exact_probabilities(LOGITS, **filters))


def test_the_filters_of_a_batch_stay_with_their_rows():
    kinds = list(FILTERS.values())
    sequences = [
        make_sequence(seed=seed, **kinds[seed % len(kinds)])
        for seed in range(NUM_DRAWS // 2 * len(kinds))
    ]
    tokens = draw(LOGITS, sequences)
    for index, filters in enumerate(kinds):
        assert_distributed(tokens[index :: len(kinds)], exact_probabilities(LOGITS, **filters))


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


def test_another_seed_or_position_gives_another_draw():
    flat = torch.zeros(10_000)
    tokens = draw(
        flat,
        [
            make_sequence(seed=seed, position=position)
            for seed in range(8)
            for position in (1, 2, 3)
        ],
    )
    assert len(set(tokens)) == 24


def test_greedy_rows_take_the_likeliest_token_whoever_is_sampled_beside_them():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 100, generator=generator)
    sequences = [make_sequence(seed=row, do_sample=row % 3 > 0) for row in range(64)]
    tokens = [token.token_id for token in sample(logits, sequences)]
    greedy, likeliest = tokens[::3], logits.argmax(dim=-1).tolist()
    assert greedy == likeliest[::3]
    assert tokens != likeliest


@pytest.mark.parametrize(
    "generation",
    [
        {"do_sample": False},
        {"temperature": 0},
        {"temperature": 1e-30},
        {"temperature": 1e-60},  # zero in float32
        {"top_k": 1},
        {"top_p": 0},
        {"min_p": 1},
    ],
    ids=str,
)
def test_only_the_likeliest_token_is_left(generation):
    sequences = [make_sequence(seed=seed, **generation) for seed in range(500)]
    assert set(draw(LOGITS, sequences)) == {int(LOGITS.argmax())}


def test_min_p_of_one_keeps_all_that_are_likeliest():
    logits = torch.tensor([1.0, 3.0, 0.0, 3.0, 3.0])
    tokens = draw(logits, [make_sequence(seed=seed, min_p=1) for seed in range(NUM_DRAWS)])
    assert_distributed(tokens, [0, 1 / 3, 0, 1 / 3, 1 / 3])


@pytest.mark.parametrize("vocab_size", [VOCAB_SIZE, 32_064, 152_064])
def test_without_filters_a_draw_finds_its_place_in_the_whole_vocabulary(vocab_size):
    # The seeds whose draws are nearest to 0 and 1: the ends are what a filter would cut first.
    seeds = sorted(range(100_000), key=lambda seed: uniform(seed, 1))
    seeds = [*seeds[:20], *seeds[-20:]]
    tokens = draw(torch.zeros(vocab_size), [make_sequence(seed=seed) for seed in seeds])
    for seed, token in zip(seeds, tokens, strict=True):
        assert abs(token - uniform(seed, 1) * vocab_size) <= 1.01


def test_a_token_of_no_probability_is_never_drawn():
    logits = LOGITS.masked_fill(torch.arange(VOCAB_SIZE) % 2 == 0, -torch.inf)
    tokens = draw(logits, [make_sequence(seed=seed) for seed in range(NUM_DRAWS)])
    assert_distributed(tokens, exact_probabilities(logits))


@pytest.mark.parametrize("top_k", [2, 50, 127, 128, 129, 400])
def test_a_large_vocabulary_is_filtered_like_a_small_one(top_k):
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(top_k)) * 0.1
    sequences = [make_sequence(seed=seed, top_k=top_k, min_p=0.8) for seed in range(NUM_DRAWS)]
    expected = transformers_scores(logits, sequences[0]).softmax(dim=-1)
    assert_distributed(draw(logits, sequences), expected.tolist())


def test_of_equal_logits_those_with_lower_ids_are_in_the_top_k():
    logits = torch.zeros(1000)
    logits[7] = -1
    tokens = draw(logits, [make_sequence(seed=seed, top_k=8) for seed in range(400)])
    assert set(tokens) == {0, 1, 2, 3, 4, 5, 6, 8}


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


@pytest.mark.parametrize(
    "places",
    [
        [(seed, 1) for seed in range(20_000)],
        [(0, position) for position in range(20_000)],
        [(2**64 - 1 - seed, seed % 7) for seed in range(20_000)],
        [(seed, seed) for seed in range(-10_000, 10_000)],
    ],
    ids=["seeds", "positions", "large_seeds", "both"],
)
def test_random_numbers_are_spread_evenly_over_the_unit_interval(places):
    numbers = [uniform(seed, position) for seed, position in places]
    assert all(0 <= number < 1 for number in numbers)
    assert len(set(numbers)) == len(numbers)
    assert_distributed([int(number * 50) for number in numbers], [1 / 50] * 50)
    # And a number says nothing about the next: pairs fill the unit square.
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    assert_distributed([int(a * 7) * 7 + int(b * 7) for a, b in pairs], [1 / 49] * 49)


def test_random_numbers_are_those_of_every_machine_and_version():
    assert uniform(0, 0) == 0.0564663990004608
    assert uniform(1, 2) == 0.6434025071674214
    assert uniform(2**64 - 1, 10**6) == 0.9198683481359026
