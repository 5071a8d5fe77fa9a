"""Answers that are JSON: whether they are valid, and how many of their fields are right."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmflow.evaluation.answer import Answer
from vlmflow.evaluation.scorers.json_answer import as_json, read_json_answer
from vlmflow.job.errors import SpecError


class JsonFields:
    """The share of the expected fields that the answer has with the same value.

    A field is a leaf: {"a": {"b": 1}, "c": [2, 3]} has a.b, c.0 and c.1. Numbers are compared by
    value, texts but for case and blanks; what the answer has beyond the expected costs nothing
    unless the schema forbids it. An answer that is no JSON, or against the schema, scores 0.
    """

    needs_expected = True

    def __init__(self, name: str, schema: str | None = None) -> None:
        """`schema` is a file of JSON Schema. Raises SpecError."""
        self.name = name
        self._is_valid = _validator(schema) if schema is not None else None

    def score(self, answer: Answer, expected: Any) -> float | None:
        assert answer.text is not None
        fields = dict(_leaves(as_json(expected), ()))
        if not fields:
            return None
        try:
            value = read_json_answer(answer.text)
        except ValueError:
            return 0.0
        if self._is_valid is not None and not self._is_valid(value):
            return 0.0
        given = dict(_leaves(value, ()))
        missing = object()
        return sum(_same(given.get(k, missing), v) for k, v in fields.items()) / len(fields)


class JsonValid:
    """1 if the answer is JSON, and by the schema if there is one. Needs no expected answer."""

    needs_expected = False

    def __init__(self, name: str, schema: str | None = None) -> None:
        self.name = name
        self._is_valid = _validator(schema) if schema is not None else None

    def score(self, answer: Answer, expected: Any) -> float | None:
        assert answer.text is not None
        try:
            value = read_json_answer(answer.text)
        except ValueError:
            return 0.0
        return float(self._is_valid is None or self._is_valid(value))


def _leaves(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, (*path, name))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, index))
    else:
        yield path, value


def _same(given: Any, expected: Any) -> bool:
    if isinstance(expected, str) and isinstance(given, str):
        return given.lower().split() == expected.lower().split()
    if isinstance(expected, bool) or isinstance(given, bool):
        return given is expected
    return bool(given == expected)


def _validator(file: str) -> Any:
    import jsonschema

    try:
        schema = json.loads(Path(file).read_text(encoding="utf-8"))
        kind = jsonschema.validators.validator_for(schema)
        kind.check_schema(schema)
    except OSError as error:
        raise SpecError(f"cannot read schema {file!r}: {error.strerror}") from error
    except (ValueError, jsonschema.SchemaError) as error:
        reason = getattr(error, "message", "it is not JSON")
        raise SpecError(f"{file!r} holds no JSON Schema: {reason}") from error
    return kind(schema).is_valid
