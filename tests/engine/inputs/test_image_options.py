"""Options of an image are whole numbers in a sensible order; a model may ignore them."""

from typing import Any

import pytest

from vlmflow_engine.errors import InvalidRequestError
from vlmflow_engine.inputs.image_options import read_image_options


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, {}),
        ({"detail": "low"}, {"max_dynamic_patch": 6}),
        ({"detail": "medium"}, {"max_dynamic_patch": 12}),
        ({"detail": "high"}, {"max_dynamic_patch": 24}),
        ({"detail": "auto"}, {}),
        ({"detail": "high", "max_dynamic_patch": 1}, {"max_dynamic_patch": 1}),
        ({"min_pixels": 5, "max_pixels": 5}, {"min_pixels": 5, "max_pixels": 5}),
        ({"max_pixels": None, "detail": None}, {}),
        ({"url": "a.png", "uuid": 5}, {}),
    ],
)
def test_options_are_read(given: dict[str, Any], options: dict[str, int]) -> None:
    assert read_image_options(given) == options


def test_later_place_wins_where_both_have_a_value() -> None:
    places = ({"detail": "low", "max_pixels": 4}, {"detail": "high", "max_pixels": None})
    assert read_image_options(*places) == {"max_dynamic_patch": 24, "max_pixels": 4}


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"detail": "fine"}, "'fine'"),
        ({"detail": ["low"]}, "low"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch .* got 0"),
        ({"max_dynamic_patch": "12"}, "'12'"),
        ({"max_dynamic_patch": True}, "True"),
        ({"min_pixels": 1.5}, "1.5"),
        ({"max_pixels": -1}, "max_pixels .* got -1"),
        ({"max_pixels": 2**70}, "max_pixels"),
        ({"min_pixels": 9, "max_pixels": 8}, "min_pixels=9 is above its max_pixels=8"),
    ],
)
def test_wrong_value_is_refused_and_named(given: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidRequestError, match=what):
        read_image_options(given)
