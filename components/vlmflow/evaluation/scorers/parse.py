"""Reads how a user names scorers: `exact_match,anls(threshold=0.3),mine=my.module:function`."""

import json
import re
from dataclasses import dataclass
from typing import Any

from vlmflow.job.errors import SpecError

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_WORDING = re.compile(rf"(?:({_NAME})=)?([A-Za-z_][\w.:/-]*)(?:\((.*)\))?", re.DOTALL)
_OPTION = re.compile(rf"\s*({_NAME})\s*=\s*(.*?)\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Wording:
    """One scorer as it was written."""

    name: str  # of its column, and in a gate
    kind: str  # anls, module:function, mlflow:Guidelines
    options: dict[str, Any]
    text: str


def parse_scorers(text: str) -> list[Wording]:
    """Raises SpecError for what is not of this form, and for two scorers of one name."""
    wordings = [_parse_one(part) for part in _split(text)]
    if not wordings:
        raise SpecError("no scorer is named; give at least one, such as exact_match")
    names = [wording.name for wording in wordings]
    for wording in wordings:
        if names.count(wording.name) > 1:
            raise SpecError(
                f"two scorers are called {wording.name!r}; call one otherwise: "
                f"{wording.name}_2={wording.text}"
            )
    return wordings


def _parse_one(text: str) -> Wording:
    found = _WORDING.fullmatch(text)
    if found is None:
        raise SpecError(
            f"{text!r} is no scorer; write NAME, NAME(option=value), module:function, "
            "or COLUMN=any of these"
        )
    column, kind, inside = found.groups()
    options = {}
    for part in _split(inside or ""):
        option = _OPTION.fullmatch(part)
        if option is None:
            raise SpecError(f"scorer {text!r}: {part!r} is no option; write name=value")
        options[option[1]] = _value(option[2])
    name = column or re.sub(r"\W+", "_", kind.rpartition(":")[2] or kind)
    return Wording(name, kind, options, text)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _split(text: str) -> list[str]:
    """Cut at the commas that stand in no bracket and no quotation."""
    parts, depth, is_quoted, begin = [], 0, False, 0
    for at, sign in enumerate(text):
        if sign == '"' and (at == 0 or text[at - 1] != "\\"):
            is_quoted = not is_quoted
        elif is_quoted:
            continue
        elif sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        elif sign == "," and depth == 0:
            parts.append(text[begin:at])
            begin = at + 1
    parts.append(text[begin:])
    return [part.strip() for part in parts if part.strip()]
