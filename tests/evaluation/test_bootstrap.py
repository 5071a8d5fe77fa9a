"""Intervals beside scipy's bootstrap, and what may not change them."""

import numpy as np
import pytest
from scipy.stats import binom, bootstrap

from vlmflow.evaluation.bootstrap import MAX_VALUES, mean_interval


def test_interval_is_that_of_scipys_bootstrap():
    scores = np.random.default_rng(3).beta(2, 5, size=80)
    ours = mean_interval(scores, num_resamples=20_000)
    theirs = bootstrap(
        (scores,), np.mean, n_resamples=20_000, method="percentile", random_state=1
    ).confidence_interval
    assert ours is not None
    assert ours.low == pytest.approx(theirs.low, abs=0.002)
    assert ours.high == pytest.approx(theirs.high, abs=0.002)


def test_interval_of_right_and_wrong_is_the_binomial_one():
    scores = np.array([1.0] * 70 + [0.0] * 30)
    ours = mean_interval(scores, num_resamples=50_000)
    assert ours is not None
    assert ours.low == pytest.approx(binom.ppf(0.025, 100, 0.7) / 100, abs=0.011)
    assert ours.high == pytest.approx(binom.ppf(0.975, 100, 0.7) / 100, abs=0.011)


def test_same_scores_have_the_same_interval_in_any_order():
    scores = np.random.default_rng(0).random(500)
    assert mean_interval(scores) == mean_interval(scores[::-1]) == mean_interval(scores)
    assert mean_interval(scores) != mean_interval(scores, seed=1)


def test_more_values_than_are_kept_apart_move_the_interval_by_next_to_nothing():
    scores = np.random.default_rng(0).random(30_000)
    assert len(np.unique(scores)) > MAX_VALUES
    ours = mean_interval(scores)
    spread = 1.96 * scores.std() / np.sqrt(len(scores))
    assert ours is not None
    assert ours.low == pytest.approx(scores.mean() - spread, abs=0.0005)
    assert ours.high == pytest.approx(scores.mean() + spread, abs=0.0005)


def test_nothing_has_no_interval_and_one_score_has_itself():
    assert mean_interval(np.empty(0)) is None
    ours = mean_interval(np.array([0.25]))
    assert ours is not None and (ours.low, ours.high) == (0.25, 0.25)
