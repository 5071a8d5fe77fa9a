"""Token F1, by counting words by hand."""

import pytest

from vlmflow.evaluation.scorers.token_f1 import token_f1


@pytest.mark.parametrize(
    ("text", "expected", "score"),
    [
        ("the Cat sat", "a cat sat down", 0.8),  # 2 common words of 2 and 3
        ("red red cube", "red cube cube", 2 / 3),  # each word as often as both have it
        ("cat", "dog", 0),
        ("the", "a", 1),  # SQuAD 2.0: both without a word
        ("the", "cat", 0),
        ("Denver Broncos", "Denver Broncos", 1),
    ],
)
def test_f1_is_of_the_bags_of_normalised_words(text, expected, score):
    assert token_f1(text, expected) == pytest.approx(score)
