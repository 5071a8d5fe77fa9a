"""Two runs on the same records: who won, and whether that can be chance."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlmflow.evaluation.bootstrap import NUM_RESAMPLES, SEED, Interval, Scores, mean_interval

MAX_EXACT = 10_000  # unequal pairs; beyond that the exact test and the approximation are one

_EQUAL = 1e-9  # scores that differ by no more are a tie


@dataclass(frozen=True, slots=True)
class PairedResult:
    """What the pairs of one scorer say. A is the old run, B the new one."""

    num_pairs: int
    mean_a: float
    mean_b: float
    wins: int  # pairs in which B's score is higher
    losses: int
    ties: int
    interval: Interval  # of the mean difference B - A, by paired bootstrap
    p_value: float  # of as uneven wins and losses, or more so, if both runs were equally good
    test: str  # "mcnemar", or "sign" if the scores are not all 0 or 1
    is_exact: bool

    @property
    def difference(self) -> float:
        return self.mean_b - self.mean_a


def compare_pairs(
    a: Scores, b: Scores, *, num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> PairedResult | None:
    """Compare scores pair by pair; None without pairs."""
    if not len(a):
        return None
    differences = b - a
    wins, losses = won(differences)
    num_wins, num_losses = int(wins.sum()), int(losses.sum())
    interval = mean_interval(differences, num_resamples=num_resamples, seed=seed)
    assert interval is not None
    is_binary = bool(np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all())
    return PairedResult(
        num_pairs=len(a),
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
        wins=num_wins,
        losses=num_losses,
        ties=len(a) - num_wins - num_losses,
        interval=interval,
        p_value=p_value(num_wins, num_losses),
        test="mcnemar" if is_binary else "sign",
        is_exact=num_wins + num_losses <= MAX_EXACT,
    )


def won(differences: Scores) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which pairs B wins, and which it loses."""
    return differences > _EQUAL, differences < -_EQUAL


def p_value(wins: int, losses: int) -> float:
    """Two-sided p-value of McNemar's test (Psychometrika 12, 1947); of any scores, the sign test.

    Exact binomial up to MAX_EXACT unequal pairs, then chi-squared with Edwards' correction for
    continuity (Psychometrika 13, 1948).
    """
    from scipy.stats import binomtest, chi2

    count = wins + losses
    if count == 0:
        return 1.0
    if count <= MAX_EXACT:
        return float(binomtest(wins, count, 0.5).pvalue)
    statistic = max(0, abs(wins - losses) - 1) ** 2 / count
    return float(chi2.sf(statistic, 1))
