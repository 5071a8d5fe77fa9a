"""Sampling, against the exact distribution that its filters leave."""

import math
from collections import Counter
from collections.abc import Sequence as AbstractSequence

import pytest
import torch
from torch import Tensor

from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.request import Request
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


def make_sequence(*, seed: int = 0, position: int = 1, **generation: float) -> Sequence:
    """A sequence whose next token stands at `position`; sampled from all tokens by default."""
    config = GenerationConfig(**{"do_sample": True, "temperature": 1.0, "top_k": 0} | generation)
    request = Request(0, (0,) * position, (), config, seed)
    return Sequence(request, max_num_tokens=10**6, stop_token_ids=frozenset())


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


def test_a_seed_and_a_position_give_the_same_token_alone_and_in_a_batch_of_64():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 1000, generator=generator)
    kinds = list(FILTERS.values())
    sequences = [
        make_sequence(seed=3 * row, position=1 + row % 5, **kinds[row % len(kinds)])
        for row in range(64)
    ]
    together = sample(logits, sequences)
    assert len(set(together)) > 32
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


def test_logits_are_left_as_they_were():
    logits = LOGITS.repeat(4, 1)
    sample(logits, [make_sequence(seed=row, **FILTERS["all"]) for row in range(4)])
    assert torch.equal(logits, LOGITS.repeat(4, 1))


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
