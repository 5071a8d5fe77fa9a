"""ANLS beside its definition, with a Levenshtein distance written out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmflow.evaluation.answer import Answer
from vlmflow.evaluation.scorers import make_scorers
from vlmflow.evaluation.scorers.anls import Anls

WORDS = st.text("abcd ", max_size=8)


def distance(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


@given(WORDS, WORDS)
def test_score_is_one_less_the_normalised_distance_below_the_threshold(text, expected):
    one, other = " ".join(text.split()), " ".join(expected.split())
    longer = max(len(one), len(other))
    share = distance(one, other) / longer if longer else 0.0
    assert Anls()(text, expected) == pytest.approx(1 - share if share < 0.5 else 0.0)


@pytest.mark.parametrize(
    ("text", "expected", "score"),
    [
        ("Coca Cola", "coca  cola", 1),
        ("coca coli", "coca cola", 8 / 9),
        ("ab", "ax", 0),  # a distance of exactly 0.5 is too far
        ("aXc", "abc", 2 / 3),
        ("pepsi", "coca cola", 0),
    ],
)
def test_known_texts(text, expected, score):
    assert Anls()(text, expected) == pytest.approx(score)


def test_threshold_is_an_option_and_the_nearest_expected_text_counts():
    [scorer] = make_scorers("anls(threshold=0.6)")
    assert scorer.score(Answer("r", 0, "ab", {}), ["zz", "ax"]) == pytest.approx(0.5)
