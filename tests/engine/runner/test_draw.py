"""Draws, against the exact distribution that the filters leave."""

import math

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
from tests.engine.runner.sequences import make_sequence, transformers_scores
from vlmflow_engine.kernels.gumbel import gumbel_of_all
from vlmflow_engine.runner.draw import choose


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


def test_top_p_keeps_a_token_if_all_likelier_ones_have_just_as_much_together():
    # LMDeploy's rule; transformers would leave the second one out.
    tokens = draw(torch.zeros(2), [make_sequence(seed=seed, top_p=0.5) for seed in range(100)])
    assert set(tokens) == {0, 1}


def test_min_p_of_one_keeps_all_that_are_likeliest():
    logits = torch.tensor([1.0, 3.0, 0.0, 3.0, 3.0])
    tokens = draw(logits, [make_sequence(seed=seed, min_p=1) for seed in range(NUM_DRAWS)])
    assert_distributed(tokens, [0, 1 / 3, 0, 1 / 3, 1 / 3])


@pytest.mark.parametrize("vocab_size", [VOCAB_SIZE, 32_064, 152_064])
def test_without_filters_a_draw_finds_its_place_in_the_whole_vocabulary(vocab_size):
    tokens = draw(torch.zeros(vocab_size), [make_sequence(seed=seed) for seed in range(200)])
    assert_distributed([token * 12 // vocab_size for token in tokens], [1 / 12] * 12)


@pytest.mark.parametrize("token", [0, 7, 30_001, 31_999])
def test_a_rare_token_is_drawn_as_often_as_it_is_likely_in_a_large_vocabulary(token):
    logits = torch.zeros(32_000)
    logits[token] = math.log(31_999)  # as likely as all the others together
    tokens = draw(logits, [make_sequence(seed=seed) for seed in range(400)])
    assert_distributed([int(drawn == token) for drawn in tokens], [0.5, 0.5])


@pytest.mark.parametrize("kind", [{}, {"top_p": 0.9}, {"top_k": 50}], ids=str)
def test_a_draw_is_the_largest_sum_of_heated_logit_and_noise(kind):
    """Whether noise is made for a whole row, or for the tokens that are kept."""
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(1)) * 3
    for seed in (0, 5, -3, 2**64 + 9):
        noise = torch.from_numpy(gumbel_of_all(seed % 2**64, 4, 1000))
        sequence = make_sequence(seed=seed, position=4, temperature=0.7, **kind)
        kept = transformers_scores(logits, sequence) > -torch.inf
        expected = (logits / 0.7 + noise).masked_fill(~kept, -torch.inf).argmax()
        assert draw(logits, [sequence]) == [int(expected)]


@pytest.mark.parametrize("kind", [{}, {"top_p": 0.9}, {"top_k": 50}, {"do_sample": False}], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_a_nan_leaves_no_token_and_an_infinity_but_one(value, kind):
    logits = torch.full((1000,), value if value == -torch.inf else 1.0)
    logits[700] = value
    (token,) = choose(logits[None], [make_sequence(**kind)]).tolist()
    assert token == (700 if value == torch.inf else -1)


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
