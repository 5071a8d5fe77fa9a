"""The JSON objects that a checkpoint's configs are."""

import json
from pathlib import Path
from typing import Any

from vlmflow_engine.errors import ModelError


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object. Raises ModelError, OSError."""
    return parse_object(path.read_bytes(), path)


def parse_object(raw: bytes, path: Path) -> dict[str, Any]:
    """Read the content of `path`. Raises ModelError."""
    try:
        content = json.loads(raw)
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: not a JSON object but a {type(content).__name__}")
    return content
