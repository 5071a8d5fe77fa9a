"""Confidence intervals by bootstrap (Efron 1979): the percentile interval of a mean.

Resampling n scores with replacement draws how often each *different* score comes from a
multinomial distribution. Most scores have few values (0 and 1), so a million of them cost as much
as a hundred. Where there are more than MAX_VALUES different ones they are first rounded to so
many steps between the least and the largest, which moves a mean by less than 1/8,000 of that range.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2000
SEED = 20_240_229
LEVEL = 0.95
MAX_VALUES = 4096

_CELLS = 4_000_000  # of one draw: 32 MB

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float


def mean_interval(
    scores: Scores,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = SEED,
    level: float = LEVEL,
) -> Interval | None:
    """The interval in which `level` of the resampled means lie; None without scores."""
    means = resampled_means(scores, num_resamples=num_resamples, seed=seed)
    if not len(means):
        return None
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def resampled_means(scores: Scores, *, num_resamples: int, seed: int) -> Scores:
    """The means of samples drawn with replacement, [num_resamples]; empty without scores."""
    if not len(scores):
        return np.empty(0)
    values, counts = _values(scores)
    generator = np.random.default_rng(seed)
    means = []
    step = max(1, _CELLS // len(values))
    for begin in range(0, num_resamples, step):
        size = min(step, num_resamples - begin)
        drawn = generator.multinomial(len(scores), counts / len(scores), size=size)
        means.append(drawn @ values / len(scores))
    return np.concatenate(means)


def _values(scores: Scores) -> tuple[Scores, NDArray[np.int64]]:
    values, counts = np.unique(scores, return_counts=True)
    if len(values) > MAX_VALUES:
        low, high = float(values[0]), float(values[-1])
        steps = np.rint((scores - low) / (high - low) * (MAX_VALUES - 1))
        steps, counts = np.unique(steps, return_counts=True)
        values = low + steps / (MAX_VALUES - 1) * (high - low)
    return values, counts
