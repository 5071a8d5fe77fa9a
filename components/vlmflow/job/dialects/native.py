"""The native dialect.

    {"id": "r1", "prompt": "Describe it.", "images": ["s3://bucket/a.png"],
     "expected": "a cat", "metadata": {"split": "test"}, "generation": {"max_new_tokens": 32}}

`messages` (OpenAI style, with `image_url` parts) may stand for `prompt` and `images`. Any other
field is passed through to the result.
"""

from typing import Any

from vlmflow.job.dialects.item import LineError
from vlmflow.job.dialects.messages import Messages, images_then_text
from vlmflow.job.dialects.options import checked
from vlmflow.job.record import RESULT_FIELDS, Record

_OWN_FIELDS = frozenset(("id", "prompt", "messages", "images", "generation"))


class NativeDialect:
    name = "native"
    id_field = "id"
    id_is_optional = False

    def record(self, content: dict[str, Any], record_id: str, ordinal: int, line: int) -> Record:
        """Raises LineError."""
        clash = RESULT_FIELDS & content.keys()
        if clash:
            raise LineError(
                f"field {min(clash)!r} is a result's; rename it or put it into 'metadata'"
            )
        generation = content.get("generation", {})
        if not isinstance(generation, dict):
            raise LineError("'generation': must be an object")
        prompt, image_uris = _prompt(content)
        return Record(
            ordinal=ordinal,
            line=line,
            record_id=record_id,
            prompt=prompt,
            image_uris=image_uris,
            generation=checked(generation),
            passed_through={k: v for k, v in content.items() if k not in _OWN_FIELDS},
        )


def _prompt(content: dict[str, Any]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The prompt with its images taken out. Raises LineError."""
    if ("prompt" in content) == ("messages" in content):
        raise LineError("give either 'prompt' or 'messages'")
    images = content.get("images", [])
    if not isinstance(images, list) or not all(isinstance(i, str) and i for i in images):
        raise LineError("'images' must be a list of URIs")
    if "prompt" in content:
        text = content["prompt"]
        if not isinstance(text, str):
            raise LineError("'prompt' must be a string")
        return images_then_text(len(images), text), tuple(images)
    if images:
        raise LineError("with 'messages' the images are parts of them, not in 'images'")
    messages = content["messages"]
    if not isinstance(messages, list) or not messages:
        raise LineError("'messages' must be a list that is not empty")
    into = Messages()
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise LineError("a message is an object with 'role' and 'content'")
        parts = message.get("content")
        if isinstance(parts, list):
            parts = [_part(part, into) for part in parts]
        elif not isinstance(parts, str):
            raise LineError("a message's 'content' must be a string or a list of parts")
        into.add(message["role"], parts)
    return into.messages, tuple(into.uris)


def _part(part: Any, into: Messages) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image_url":
        value = part.get("image_url")
        uri = value.get("url") if isinstance(value, dict) else value
        if isinstance(uri, str) and uri:
            return into.image(uri)
    raise LineError(
        "a part is {'type': 'text', 'text': ...} or "
        "{'type': 'image_url', 'image_url': {'url': ...}}"
    )
