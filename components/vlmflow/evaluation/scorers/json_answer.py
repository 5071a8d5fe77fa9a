"""The JSON that stands in an answer."""

import json
import re
from typing import Any

_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)


def read_json_answer(text: str) -> Any:
    """The value that an answer is, or that its only code fence holds. Raises ValueError."""
    fences = _FENCE.findall(text)
    return json.loads(fences[0] if len(fences) == 1 else text)


def as_json(expected: Any) -> Any:
    """What is expected, as a value: manifests of tables can hold it as text only."""
    if not isinstance(expected, str):
        return expected
    try:
        return json.loads(expected)
    except ValueError:
        return expected
