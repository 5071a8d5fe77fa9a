"""What the dialects of JSON lines are known by."""

from collections.abc import Callable
from typing import Any

LINE_SIGNS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "native": lambda line: "id" in line and ("prompt" in line or "messages" in line),
    "openai": lambda line: "custom_id" in line and ("body" in line or "url" in line),
    "anthropic": lambda line: "custom_id" in line and "params" in line,
    "bedrock": lambda line: "modelInput" in line,
    "gemini": lambda line: isinstance(line.get("request"), dict) and "contents" in line["request"],
    "ground-truth": lambda line: "source-ref" in line or "source" in line,
}


def dialect_of(line: dict[str, Any]) -> str | None:
    """Name the dialect of a line; None if it could be any."""
    for name, has_signs in LINE_SIGNS.items():
        if has_signs(line):
            return name
    return None
