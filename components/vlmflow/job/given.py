"""An argument that a template or a pipeline made, of which both can make text only.

"None" and an empty text are for nothing.
"""

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from vlmflow.job.errors import SpecError


def given(value: Any) -> Any:
    """None for what was not given: None, "None", and an empty text."""
    if value is None or (isinstance(value, str) and value.strip() in ("", "None")):
        return None
    return str(value) if isinstance(value, PurePath) else value


def given_flag(name: str, value: Any) -> bool:
    """Whether it was said. Raises SpecError for what is neither yes nor no."""
    found = {"true": True, "false": False, "none": False, "": False}.get(str(value).strip().lower())
    if found is None:
        raise SpecError(f"{name} must be True or False, got {value!r}")
    return found


def given_group(name: str, value: Any) -> Any:
    """A group or a list, of which a template makes JSON; without what was not given in it.

    What is neither is left to whoever checks it. Raises SpecError for what begins like JSON only.
    """
    if isinstance(value, str) and value.strip()[:1] in ("{", "["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise SpecError(f"{name}: {value!r} is not JSON") from error
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if item != "None"}
    return value


def given_mapping(name: str, value: Any) -> dict[str, Any]:
    """Names and values, or JSON of such. Raises SpecError."""
    value = given_group(name, given(value))
    if not isinstance(value, Mapping | None):
        raise SpecError(f"{name} must be a dict, or JSON of one, got {value!r:.200}")
    return {str(key): item for key, item in (value or {}).items() if item is not None}
