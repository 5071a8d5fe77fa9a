"""Forms of answers with one answer each, for benchmarks/grammar.py."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Case:
    """A schema or a regex; the answer is of its form."""

    name: str
    answer: str
    schema: dict[str, Any] | None = None
    regex: str | None = None

    @property
    def response_format(self) -> dict[str, Any]:
        if self.regex is not None:
            return {"type": "regex_schema", "regex_schema": self.regex}
        return {"type": "json_schema", "json_schema": {"schema": self.schema}}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_LINE = _object(
    text={"type": "string"},
    price={"type": "number"},
    tags={"type": "array", "items": {"type": "string"}, "maxItems": 5},
)

CASES = (
    Case(
        "five fields, a name of at most 40 characters",
        '{"name": "A small house by the river", "count": 42, "score": 0.875, '
        '"colour": "green", "ok": true}',
        _object(
            name={"type": "string", "maxLength": 40},
            count={"type": "integer", "minimum": 0, "maximum": 500},
            score={"type": "number"},
            colour={"enum": ["red", "green", "blue"]},
            ok={"type": "boolean"},
        ),
    ),
    Case(
        "an invoice: nested, with a pattern and a date",
        json.dumps(
            {
                "number": "AB-12345",
                "date": "2024-03-01",
                "lines": [
                    {"text": "Bread and butter, fresh", "price": 3.5, "tags": ["food", "daily"]},
                    {"text": "Größe — ✓", "price": 12, "tags": []},
                ],
                "note": None,
            },
            ensure_ascii=False,
        ),
        {
            "$defs": {"line": _LINE},
            **_object(
                number={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4,8}$"},
                date={"type": "string", "format": "date"},
                lines={"type": "array", "items": {"$ref": "#/$defs/line"}, "minItems": 1},
                note={"anyOf": [{"type": "string"}, {"type": "null"}]},
            ),
        },
    ),
    Case(
        "one of 500 labels",
        '"class 417 of things"',
        {"enum": [f"class {number} of things" for number in range(500)]},
    ),
    Case(
        "any object",
        json.dumps({"a": [1, 2, {"b": "some longer text here, with words"}], "c": None, "d": 0.5}),
        {"type": "object"},
    ),
    Case(
        "a regex of lines",
        "Category: outdoor scene\nConfidence: 0.93\nReason: two people walk by a lake",
        regex=r"Category: [a-z ]{1,40}\nConfidence: [01]\.[0-9]{2}\nReason: [^\n]{1,200}",
    ),
)
