"""Exact and normalised match."""

import pytest

from vlmflow.evaluation.scorers.match import exact_match, normalize, normalized_match


@pytest.mark.parametrize(
    ("text", "expected", "score"),
    [("cat", "cat", 1), (" cat\n", "cat", 1), ("Cat", "cat", 0), ("a cat", "cat", 0), ("", "", 1)],
)
def test_exact_match_forgives_blanks_at_the_ends_only(text, expected, score):
    assert exact_match(text, expected) == score


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Cat.", "cat"),
        ("an apple, a day!", "apple day"),
        ("theatre", "theatre"),
        ("U.S.A.", "usa"),
        ("a", ""),
    ],
)
def test_normalising_leaves_case_punctuation_and_articles_out(text, plain):
    assert normalize(text) == plain


def test_normalised_match_compares_what_is_left():
    assert normalized_match("The red cube.", "red cube") == 1
    assert normalized_match("red cubes", "red cube") == 0
