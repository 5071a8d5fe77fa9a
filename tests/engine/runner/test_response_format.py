"""Forms, sizes and values that are refused before anything is compiled."""

import json
from typing import Any

import pytest

from vlmflow_engine.errors import InvalidRequestError
from vlmflow_engine.runner.response_format import (
    MAX_REGEX_CHARS,
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_DEPTH,
    write_grammar,
)


def as_schema(schema: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def nested(depth: int) -> dict[str, Any]:
    """A schema of this many dicts in one another."""
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("response_format", "message"),
    [
        ({}, "type must be 'json_schema', 'json_object' or 'regex_schema', got None"),
        ({"type": "text"}, "got 'text'"),
        ({"type": "json_schema"}, "json_schema must be .* got None"),
        ({"type": "json_schema", "json_schema": '{"type": "string"}'}, "json_schema must be"),
        (as_schema([]), r"json_schema must be .* got \[\]"),
        (as_schema({"const": float("nan")}), "is not JSON: Out of range float"),
        (as_schema({"enum": [{1, 2}]}), "is not JSON: Object of type set"),
        (as_schema({"minProperties": 2}), "minProperties of 2 .* beside 0 required"),
        (as_schema({"items": {"minProperties": 4, "required": ["a", "b"]}}), "minProperties of 4"),
        ({"type": "regex_schema"}, "regex_schema must be a regular expression, got None"),
        ({"type": "regex_schema", "regex_schema": "a\\\\\\"}, "ends in a backslash"),
        ({"type": "regex_schema", "regex_schema": "a\udc00"}, "half a surrogate pair"),
    ],
)
def test_wrong_forms_are_refused_with_a_sentence(response_format, message):
    with pytest.raises(InvalidRequestError, match=f"^response_format: .*{message}"):
        write_grammar(response_format)


def test_a_refused_value_is_quoted_in_short():
    with pytest.raises(InvalidRequestError) as caught:
        write_grammar(as_schema("x" * 10_000))
    assert len(str(caught.value)) < 250


def test_a_schema_may_be_as_large_and_deep_as_the_limits_and_no_more():
    room = MAX_SCHEMA_BYTES - len(json.dumps(json.loads(_schema_text({"const": ""}))))
    write_grammar(as_schema({"const": "x" * room}))
    with pytest.raises(InvalidRequestError, match="larger than 65536 bytes"):
        write_grammar(as_schema({"const": "x" * (room + 1)}))
    write_grammar(as_schema(nested(MAX_SCHEMA_DEPTH)))
    with pytest.raises(InvalidRequestError, match="nested deeper than 100 levels"):
        write_grammar(as_schema(nested(MAX_SCHEMA_DEPTH + 1)))


def test_a_schema_that_contains_itself_is_refused():
    loop: dict[str, Any] = {}
    loop["items"] = loop
    with pytest.raises(InvalidRequestError, match="nested deeper"):
        write_grammar(as_schema(loop))
    twice: dict[str, Any] = {}
    for _ in range(60):  # small in memory, 2^60 when written
        twice = {"a": twice, "b": twice}
    with pytest.raises(InvalidRequestError, match="larger than"):
        write_grammar(as_schema(twice))


def test_a_regex_may_be_as_long_as_the_limit_and_no_longer():
    write_grammar({"type": "regex_schema", "regex_schema": "a" * MAX_REGEX_CHARS})
    with pytest.raises(InvalidRequestError, match="longer than 4096 characters"):
        write_grammar({"type": "regex_schema", "regex_schema": "a" * (MAX_REGEX_CHARS + 1)})


def test_the_bare_schema_is_taken_too():
    schema = {"type": "object", "properties": {"schema_of": {"type": "string"}}}
    bare = write_grammar({"type": "json_schema", "json_schema": schema})
    assert bare == write_grammar(as_schema(schema))


def test_the_order_of_properties_makes_another_grammar():
    forward = {"properties": {"a": {}, "b": {}}}
    backward = {"properties": {"b": {}, "a": {}}}
    assert write_grammar(as_schema(forward)) != write_grammar(as_schema(backward))


def test_options_of_the_library_in_a_schema_are_not_heard():
    plain, lenient = {"type": "string"}, {"type": "string", "x-guidance": {"lenient": True}}
    assert write_grammar(as_schema(plain)) == write_grammar(as_schema(lenient))


def _schema_text(schema: dict[str, Any]) -> str:
    return write_grammar(as_schema(schema)).partition("%json ")[2]
