"""Relaxed accuracy."""

import pytest

from vlmflow.evaluation.scorers.number import RelaxedAccuracy, to_number


@pytest.mark.parametrize(
    ("text", "expected", "score"),
    [
        ("105", "100", 1),
        ("95", "100", 1),
        ("105.1", "100", 0),
        ("94.9", "100", 0),
        ("-96", "-100", 1),
        ("96", "-100", 0),
        ("0", "0", 1),
        ("0.001", "0", 0),
        ("1,040", "1000", 1),
        ("45%", "0.44", 1),
        ("45%", "45", 0),
        ("Yes", "yes", 1),
        ("no", "yes", 0),
        ("14 people", "14", 0),
    ],
)
def test_five_per_cent_of_the_expected_number_are_near_enough(text, expected, score):
    assert RelaxedAccuracy()(text, expected) == score


def test_tolerance_is_an_option():
    assert RelaxedAccuracy(0.1)("110", "100") == 1
    assert RelaxedAccuracy(0.0)("100.1", "100") == 0


@pytest.mark.parametrize("text", ["", "nan", "inf", "1e999", "ten", "1 2", "%"])
def test_what_is_no_number_is_none(text):
    assert to_number(text) is None
