"""Fields of JSON answers."""

import json

import pytest

from vlmflow.evaluation.answer import Answer
from vlmflow.evaluation.scorers import make_scorers
from vlmflow.job.errors import SpecError

EXPECTED = {"name": "Ann Lee", "age": 41, "tags": ["a", "b"], "home": {"zip": "1"}, "ok": True}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


def score(text: str, expected: object, wording: str = "json_fields") -> float | None:
    [scorer] = make_scorers(wording)
    return scorer.score(Answer("r", 0, text, {}), expected)


def test_score_is_the_share_of_expected_leaves():
    given = {"name": "ann  LEE", "age": 41.0, "tags": ["a", "c"], "home": {}, "ok": True, "x": 1}
    assert score(json.dumps(given), EXPECTED) == pytest.approx(4 / 6)  # not tags.1, not home.zip


def test_true_is_not_one_and_null_is_not_missing():
    assert score('{"ok": 1}', {"ok": True}) == 0
    assert score('{"a": true}', {"a": 1}) == 0
    assert score("{}", {"a": None}) == 0
    assert score('{"a": null}', {"a": None}) == 1


def test_expected_may_be_json_in_a_text_and_the_answer_in_a_fence():
    assert score('Here it is:\n```json\n{"a": 1}\n```', '{"a": 1}') == 1


def test_what_is_no_json_scores_nothing():
    assert score("name: Ann", EXPECTED) == 0
    assert score('{"name": ', EXPECTED) == 0


def test_answer_against_the_schema_scores_nothing(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    wording = f"json_fields(schema={tmp_path}/s.json)"
    expected = {"name": "Ann", "age": 41}
    assert score('{"name": "Ann", "age": 40}', expected, wording) == 0.5
    assert score('{"name": "Ann", "age": "41"}', expected, wording) == 0
    assert score('{"name": "Ann", "age": "41"}', expected) == 0.5


def test_valid_json_needs_nothing_expected(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    wording = f"json_valid(schema={tmp_path}/s.json)"
    assert score('{"name": "Ann", "age": 4}', None, wording) == 1
    assert score("[]", None, wording) == 0
    assert score("[]", None, "json_valid") == 1
    assert score("[", None, "json_valid") == 0


@pytest.mark.parametrize("content", [None, "{", '{"type": "nothing"}'])
def test_schema_that_is_none_is_told_before_anything_is_scored(tmp_path, content):
    file = tmp_path / "s.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SpecError, match="s.json"):
        make_scorers(f"json_fields(schema={file})")
