"""What a template made of an argument: nothing, a number as text, JSON, or what nobody meant."""

from pathlib import Path

import pytest

from vlmflow.job.errors import SpecError
from vlmflow.job.given import given, given_flag, given_group, given_mapping


@pytest.mark.parametrize("value", [None, "None", "", " "])
def test_nothing_was_given(value):
    assert given(value) is None


@pytest.mark.parametrize(
    ("value", "meant"), [("x", "x"), (0, 0), (False, False), (Path("/opt/x"), "/opt/x")]
)
def test_something_was_given(value, meant):
    assert given(value) == meant


@pytest.mark.parametrize("value", [True, "True", "true"])
def test_yes(value):
    assert given_flag("flag", value) is True


@pytest.mark.parametrize("value", [False, "False", "false", None, "None", ""])
def test_no(value):
    assert given_flag("flag", value) is False


def test_what_is_neither_yes_nor_no_is_told():
    with pytest.raises(SpecError, match="flag must be True or False, got 'maybe'"):
        given_flag("flag", "maybe")


def test_a_group_is_without_what_was_not_given_in_it():
    assert given_group("limits", {"a": "None", "b": "3", "c": None}) == {"b": "3", "c": None}
    assert given_group("limits", '{"a": "None", "b": 3}') == {"b": 3}
    assert given_group("by", '["x", "y"]') == ["x", "y"]
    assert given_group("by", "x") == "x"


def test_a_mapping_is_one_or_json_of_one():
    assert given_mapping("env", {"A": 1, "B": None, "C": ""}) == {"A": 1, "C": ""}
    assert given_mapping("env", '{"A": "x"}') == {"A": "x"}
    assert given_mapping("env", "None") == {}
    for value in (["A"], "A=1", 5):
        with pytest.raises(SpecError, match="env must be a dict, or JSON of one, got"):
            given_mapping("env", value)
