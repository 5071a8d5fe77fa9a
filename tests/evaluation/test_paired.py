"""McNemar's test by its binomial sum, and pairs whose outcome is known."""

from math import comb

import numpy as np
import pytest

from vlmflow.evaluation.paired import MAX_EXACT, compare_pairs, p_value


@pytest.mark.parametrize(("wins", "losses"), [(10, 2), (2, 10), (5, 5), (1, 0), (0, 6), (30, 12)])
def test_p_value_is_twice_the_tail_of_the_binomial(wins, losses):
    count = wins + losses
    tail = sum(comb(count, k) for k in range(min(wins, losses) + 1)) / 2**count
    assert p_value(wins, losses) == pytest.approx(min(1.0, 2 * tail))


def test_without_unequal_pairs_nothing_is_shown():
    assert p_value(0, 0) == 1


def test_exact_test_and_approximation_meet_where_one_takes_over():
    wins = MAX_EXACT // 2 + 80
    exact = p_value(wins, MAX_EXACT - wins)
    approximate = p_value(wins + 1, MAX_EXACT - wins)
    assert exact == pytest.approx(approximate, rel=0.05)
    assert 0.05 < exact < 0.2


def test_wins_losses_ties_and_the_difference_add_up():
    a = np.array([0.0] * 12 + [1.0] * 28)
    b = np.array([1.0] * 10 + [0.0] * 4 + [1.0] * 26)
    result = compare_pairs(a, b)
    assert result is not None
    assert (result.wins, result.losses, result.ties) == (10, 2, 28)
    assert result.difference == pytest.approx(8 / 40)
    assert result.p_value == pytest.approx(2 * (1 + 12 + 66) / 4096)
    assert (result.test, result.is_exact) == ("mcnemar", True)
    # 40 resamples of +1 (10), -1 (2), 0 (28): standard error 0.0805
    assert result.interval.low == pytest.approx(0.2 - 1.96 * 0.0805, abs=0.02)
    assert result.interval.high == pytest.approx(0.2 + 1.96 * 0.0805, abs=0.02)


def test_pairing_is_used_and_not_the_two_means_alone():
    scores = np.random.default_rng(0).random(200)
    result = compare_pairs(scores, scores + 0.01)
    assert result is not None
    assert (result.wins, result.test) == (200, "sign")
    assert 0.0099 < result.interval.low <= result.interval.high < 0.0101


def test_rounding_errors_are_ties():
    result = compare_pairs(np.array([0.1 + 0.2]), np.array([0.3]))
    assert result is not None and result.ties == 1


def test_no_pairs_have_no_result():
    assert compare_pairs(np.empty(0), np.empty(0)) is None
