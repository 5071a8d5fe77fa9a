"""The native manifest: JSON Lines, one record a line.

    {"id": "r1", "prompt": "Describe it.", "images": ["s3://bucket/a.png"],
     "expected": "a cat", "metadata": {"split": "test"}, "generation": {"max_new_tokens": 32}}

`messages` (OpenAI style, with `image_url` parts) may stand for `prompt` and `images`. Any other
field is passed through to the result. Blank lines are no records.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isinf
from typing import Any

from vlmflow.job.generation import parse_generation
from vlmflow.job.record import RESULT_FIELDS, Failure, Record
from vlmflow_engine.errors import ConfigError
from vlmflow_engine.wire import IMAGE_KEY

MAX_DEPTH = 100  # what reads a value must be able to write it, however deep the stack is by then
MAX_LINE_BYTES = 32 << 20  # messages may hold an image as a data URL

_PASSED_THROUGH = ("expected", "metadata")
_OWN_FIELDS = frozenset(("id", "prompt", "messages", "images", "generation"))


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no record, and why."""

    ordinal: int
    line: int
    record_id: str | None
    failure: Failure


def read_lines(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Split a byte stream into lines, numbered from 1. A line too long comes cut off."""
    number, rest = 0, bytearray()
    for chunk in chunks:
        *complete, tail = chunk.split(b"\n")
        for line in complete:
            number += 1
            yield number, bytes(rest + line)
            rest.clear()
        rest += tail[: MAX_LINE_BYTES + 1 - len(rest)] if len(rest) <= MAX_LINE_BYTES else b""
    if rest:
        yield number + 1, bytes(rest)


def parse_records(lines: Iterable[tuple[int, bytes]]) -> Iterator[Record | BadLine]:
    """Turn numbered lines into records; every line but a blank one comes out."""
    ordinal = 0
    for number, line in lines:
        if not line.strip():
            continue
        yield parse_line(ordinal, number, line)
        ordinal += 1


def parse_line(ordinal: int, number: int, line: bytes) -> Record | BadLine:
    """Turn one line into a record, or into the reason why it is none."""
    record_id: str | None = None

    def bad(message: str) -> BadLine:
        failure = Failure("manifest", "invalid_line", f"line {number}: {message}")
        return BadLine(ordinal, number, record_id, failure)

    if len(line) > MAX_LINE_BYTES:
        return bad(f"longer than {MAX_LINE_BYTES:,} bytes")
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        content = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        if b"\\u" in line:
            json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        return bad("not valid JSON")
    if _is_deeper(content, MAX_DEPTH):
        return bad(f"more than {MAX_DEPTH} lists and objects in one another")
    if not isinstance(content, dict):
        return bad(f"a record is a JSON object, this is a {type(content).__name__}")
    record_id = content.get("id")
    if not isinstance(record_id, str) or not record_id:
        record_id = None
        return bad("'id' must be a string that is not empty")
    clash = sorted(RESULT_FIELDS & content.keys())
    if clash:
        return bad(f"field {clash[0]!r} is a result's; rename it or put it into 'metadata'")
    generation = content.get("generation", {})
    if not isinstance(generation, dict):
        return bad("'generation': must be an object")
    try:
        if generation:
            parse_generation(generation)
    except (ConfigError, TypeError) as error:
        return bad(f"'generation': {_without_prefix(error)}")
    try:
        prompt, image_uris = _prompt(content)
    except ValueError as error:
        return bad(str(error))
    return Record(
        ordinal=ordinal,
        line=number,
        record_id=record_id,
        prompt=prompt,
        image_uris=image_uris,
        generation=generation,
        passed_through={k: v for k, v in content.items() if k not in _OWN_FIELDS},
    )


def _prompt(content: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """The prompt with its images taken out. Raises ValueError."""
    if ("prompt" in content) == ("messages" in content):
        raise ValueError("give either 'prompt' or 'messages'")
    images = content.get("images", [])
    if not isinstance(images, list) or not all(isinstance(i, str) and i for i in images):
        raise ValueError("'images' must be a list of URIs")
    if "prompt" in content:
        text = content["prompt"]
        if not isinstance(text, str):
            raise ValueError("'prompt' must be a string")
        parts: list[dict[str, Any]] = [_image_part(index) for index in range(len(images))]
        parts.append({"type": "text", "text": text})
        return [{"role": "user", "content": parts}], tuple(images)
    if images:
        raise ValueError("with 'messages' the images are parts of them, not in 'images'")
    messages = content["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError("'messages' must be a list that is not empty")
    uris: list[str] = []
    return [_message(message, uris) for message in messages], tuple(uris)


def _message(message: Any, uris: list[str]) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError("a message is an object with 'role' and 'content'")
    content = message.get("content")
    if isinstance(content, str):
        return {"role": message["role"], "content": content}
    if not isinstance(content, list):
        raise ValueError("a message's 'content' must be a string or a list of parts")
    return {"role": message["role"], "content": [_part(part, uris) for part in content]}


def _part(part: Any, uris: list[str]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image_url":
        value = part.get("image_url")
        uri = value.get("url") if isinstance(value, dict) else value
        if isinstance(uri, str) and uri:
            uris.append(uri)
            return _image_part(len(uris) - 1)
    raise ValueError(
        "a part is {'type': 'text', 'text': ...} or "
        "{'type': 'image_url', 'image_url': {'url': ...}}"
    )


def _image_part(index: int) -> dict[str, Any]:
    return {"type": "image", "image": {IMAGE_KEY: index}}


def _is_deeper(value: Any, depth: int) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return False
    return depth == 0 or any(_is_deeper(item, depth - 1) for item in value)


def _finite(text: str) -> float:
    number = float(text)
    if isinf(number):
        raise ValueError(f"{text} is too large")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _without_prefix(error: Exception) -> str:
    """A TypeError of a dataclass names its own __init__; the user need not know it."""
    return str(error).replace("GenerationConfig.__init__() got an ", "")
