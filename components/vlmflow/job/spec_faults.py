"""Says of a spec what is wrong with it: which field, which value, and what would be right."""

from collections.abc import Collection
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vlmflow.job.store.locate import without_query

_UNKNOWN_FIELD = ("extra_forbidden", "unexpected_keyword_argument")
_TOLD_ALREADY = ("missing", "value_error")  # the message says it all
_MAX_VALUE = 100  # characters


def describe_faults(kind: type[BaseModel], error: ValidationError) -> str:
    """One sentence a fault."""
    return "; ".join(_sentence(kind, fault) for fault in error.errors(include_url=False))


def _sentence(kind: type[BaseModel], fault: ErrorDetails) -> str:
    place = ".".join(str(step) for step in fault["loc"])
    if fault["type"] in _UNKNOWN_FIELD:
        return f"{place}: no such field, {_instead(kind, fault['loc'])}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] not in _TOLD_ALREADY:
        message += f", got {_shown(fault['input'])}"
    return f"{place}: {message}" if place else message


def _instead(kind: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """What may have been meant by a field that there is not."""
    *groups, name = (str(step) for step in loc)
    known: Collection[str] = _fields_of(kind)
    for group in groups:
        inner = known[group] if isinstance(known, dict) else None
        known = _fields_of(inner)
    if near := get_close_matches(name, known, n=1):
        return f"did you mean {'.'.join([*groups, near[0]])}?"
    for group, inner in _fields_of(kind).items():
        if name in _fields_of(inner):
            return f"did you mean {group}.{name}?"
    return f"there are {', '.join(known)}"


def _fields_of(kind: Any) -> dict[str, Any]:
    """Names and types of the fields of a model or a dataclass; of others, none."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if is_dataclass(kind):
        return {field.name: field.type for field in fields(kind)}
    return {}


def _shown(value: Any) -> str:
    """A value as it may be shown: groups may hold much, and URIs a password."""
    if isinstance(value, str):
        value = without_query(value)
    elif not isinstance(value, int | float | None):
        return f"a {type(value).__name__}"
    shown = repr(value)
    return shown if len(shown) <= _MAX_VALUE else f"{shown[:_MAX_VALUE]}..."
