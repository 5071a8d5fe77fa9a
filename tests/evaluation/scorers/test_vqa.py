"""VQA accuracy beside its definition written out, and the known values for ten annotators."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmflow.evaluation.scorers.vqa import MIN_ANNOTATORS, normalize_vqa, vqa_accuracy


def by_definition(text: str, given_answers: list[str]) -> float:
    """The mean over all choices of all annotators but one."""
    choices = list(combinations(given_answers, len(given_answers) - 1))
    return sum(min(1.0, choice.count(text) / 3) for choice in choices) / len(choices)


@pytest.mark.parametrize(("num_same", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_one_two_and_three_of_ten_annotators_are_worth_what_is_published(num_same, score):
    answers = ["blue"] * num_same + [f"other {n}" for n in range(10 - num_same)]
    assert vqa_accuracy("blue", answers) == pytest.approx(score)


@given(st.lists(st.sampled_from(["red", "blue", "green"]), min_size=MIN_ANNOTATORS, max_size=12))
def test_accuracy_is_the_mean_over_all_choices_of_all_but_one(answers):
    assert vqa_accuracy("red", answers) == pytest.approx(by_definition("red", answers))


def test_annotations_may_be_objects_as_in_the_data_set():
    answers = [{"answer": "yes", "answer_confidence": "yes", "answer_id": n} for n in range(10)]
    assert vqa_accuracy("Yes.", answers) == 1


def test_too_few_annotators_are_no_score():
    assert vqa_accuracy("yes", ["yes"] * 3) is None
    assert vqa_accuracy("yes", "yes") is None
    assert vqa_accuracy("yes", ["yes"] * 4) == 1


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Two dogs", "2 dogs"),
        ("none", "0"),
        ("a cat on the mat", "cat on mat"),
        ("dont", "don't"),
        ("yes, it is.", "yes it is"),
        ("1/2", "1 2"),  # between letters a sign becomes a blank
        ("10,000 people?", "10000 people"),  # a comma between digits goes with all signs
        ("3.5", "3.5"),
        ("3.5.", "3.5"),
        ("well", "well"),
        ("tall\tbuilding\n", "tall building"),
    ],
)
def test_normalising_follows_the_official_code(text, plain):
    assert normalize_vqa(text) == plain


def test_both_sides_are_normalised():
    assert vqa_accuracy("the two", ["Two."] * 5 + ["2"] * 5) == 1
