"""Multiple choice: how people and models write a letter."""

import pytest

from vlmflow.evaluation.scorers.choice import find_letter, multiple_choice


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("(C)", "C"),
        ("**D**", "D"),
        ("B. A red cube", "B"),
        ("B) red", "B"),
        ("C: because it is", "C"),
        ("The answer is (B).", "B"),
        ("Answer: B", "B"),
        ("I think option c is right", "C"),
        ("The correct answer is **A**, not anything else", "A"),
        ("It can only be (D), I think", "D"),
        ("A red cube", None),  # an article
        ("I see a cat", None),
        ("The answer is a cat-like animal", None),
        ("the answer is a", "A"),
        ("the answer is a.", "A"),
        ("(A) is wrong, so the answer is B", "B"),
        ("I'd say answer B: I see no option A", "B"),
        ("B. Because option A is wrong", "B"),
        ("(A) or (B)", None),
        ("answer: A. No, the answer is B", None),
        ("Z", None),
        ("", None),
    ],
)
def test_letter_is_the_one_that_the_text_settles_on(text, letter):
    assert find_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "expected", "score"),
    [
        ("(b)", "B", 1),
        ("B. red cube", "B) red cube", 1),
        ("C", "B", 0),
        ("it is hard to tell", "B", 0),
        ("Red Cube", "red cube", 1),
    ],
)
def test_expected_may_be_a_letter_or_the_options_text(text, expected, score):
    assert multiple_choice(text, expected) == score
