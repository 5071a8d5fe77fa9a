"""Logits to sample from, filters, and a test of what was drawn."""

from collections import Counter
from collections.abc import Sequence as AbstractSequence

import torch
from torch import Tensor

from vlmflow_engine.runner.sampler import sample
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


def draw(logits: Tensor, sequences: AbstractSequence[Sequence]) -> list[int]:
    """Sample all sequences from the same logits."""
    return [token.token_id for token in sample(logits.expand(len(sequences), -1), sequences)]


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
