"""Detection boxes."""

import json

import pytest

from vlmflow.evaluation.scorers.boxes import BoxesF1, BoxesIou, intersection_over_union

CAT = {"label": "cat", "box": [0, 0, 10, 10]}
DOG = {"label": "Dog", "box": [20, 20, 30, 30]}


def test_intersection_over_union_of_known_boxes():
    assert intersection_over_union((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert intersection_over_union((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert intersection_over_union((0, 0, 10, 10), (10, 0, 20, 10)) == 0


def test_f1_counts_pairs_of_one_label_that_overlap_enough():
    near = {"label": "cat", "bbox_2d": [0, 0, 10, 8]}  # IoU 0.8
    wrong = {"label": "cow", "box": [20, 20, 30, 30]}
    assert BoxesF1()(json.dumps([near, wrong]), [CAT, DOG]) == pytest.approx(0.5)
    assert BoxesF1(iou=0.9)(json.dumps([near, wrong]), [CAT, DOG]) == 0
    assert BoxesF1()(json.dumps([CAT, DOG]), [DOG, CAT]) == 1


def test_each_expected_box_is_found_once():
    assert BoxesF1()(json.dumps([CAT, CAT]), [CAT]) == pytest.approx(2 / 3)
    assert BoxesIou()(json.dumps([CAT, CAT]), [CAT]) == pytest.approx(0.5)


def test_pairs_are_the_best_ones_whatever_their_order():
    left, middle = [0, 0, 10, 10], [4, 0, 14, 10]
    given = [[3, 0, 13, 10], [0, 0, 10, 10]]  # the first overlaps both
    assert BoxesF1(iou=0.8)(json.dumps(given), [left, middle]) == 1
    mean = (1 + 90 / 110) / 2
    assert BoxesIou()(json.dumps(given), [left, middle]) == pytest.approx(mean)


def test_nothing_expected_and_nothing_found_is_right():
    assert BoxesF1()("[]", []) == BoxesIou()("[]", []) == 1
    assert BoxesF1()("[]", [CAT]) == BoxesF1()(json.dumps([CAT]), []) == 0


@pytest.mark.parametrize("text", ["no boxes", "{}", "[1]", '[{"box": [1, 2, 3]}]', '[["a",1,1,1]]'])
def test_answer_without_boxes_scores_nothing(text):
    assert BoxesF1()(text, [CAT]) == BoxesIou()(text, [CAT]) == 0


def test_expected_that_is_no_list_of_boxes_cannot_be_scored():
    assert BoxesF1()("[]", "a cat") is None
