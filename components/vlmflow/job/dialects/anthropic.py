"""Anthropic's dialect of message batches."""

import re
from typing import Any

from vlmflow.job.dialects.asked import Asked, OneModel, list_of, object_of, without
from vlmflow.job.dialects.item import LineError
from vlmflow.job.dialects.messages import Messages, data_uri, text_part, uri_of
from vlmflow.job.dialects.options import refuse_others, renamed, sampled
from vlmflow.job.record import Record

_CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

_GENERATION = {
    "max_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "stop_sequences": "stop_words",
}
_FIELDS = frozenset(
    (
        *("messages", "system", "model", "metadata", *_GENERATION),
        *("service_tier", "anthropic_version", "anthropic_beta"),
    )
)
_ONLY: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "tools": ([],),
    "tool_choice": ({"type": "none"}, {"type": "auto"}),
    "mcp_servers": ([],),
    "thinking": ({"type": "disabled"},),
}


class AnthropicDialect:
    name = "anthropic"
    id_field = "custom_id"
    id_is_optional = False

    def __init__(self, model: OneModel) -> None:
        self._model = model

    def record(self, content: dict[str, Any], record_id: str, ordinal: int, line: int) -> Record:
        """Raises LineError."""
        if not _CUSTOM_ID.fullmatch(record_id):
            raise LineError("'custom_id' must be 1 to 64 letters, digits, '_' and '-'")
        asked = read_params(object_of(content, "params"), "params")
        self._model.check(asked.model)
        return asked.record(record_id, ordinal, line, without(content, "custom_id", "params"))


def read_params(params: dict[str, Any], where: str) -> Asked:
    """Read the body of a message. Raises LineError."""
    refuse_others(params, where, known=_FIELDS, only=_ONLY)
    prompt = Messages()
    system = params.get("system")
    if isinstance(system, list):
        prompt.add("system", [_block(block, prompt) for block in system])
    elif system is not None:
        prompt.add("system", text_part(system, "'system'")["text"])
    for message in list_of(params, "messages"):
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            raise LineError("a message is an object with 'role' (user or assistant) and 'content'")
        content = message.get("content")
        if isinstance(content, list):
            prompt.add(message["role"], [_block(block, prompt) for block in content])
        else:
            prompt.add(message["role"], text_part(content, "a message's 'content'")["text"])
    generation = sampled(renamed(params, _GENERATION))
    return Asked(prompt, generation, params.get("metadata"), params.get("model"))


def _block(block: Any, prompt: Messages) -> dict[str, Any]:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "text":
        return text_part(block.get("text"), "a block's 'text'")
    if kind != "image":
        shown = f"{kind[:80]!r}" if isinstance(kind, str) else "missing"
        raise LineError(f"a block's 'type' must be text or image, it is {shown}")
    source = object_of(block, "source")
    if source.get("type") == "base64":
        uri = data_uri(source.get("media_type"), source.get("data"), "an image's 'data'")
        return prompt.image(uri)
    if source.get("type") == "url":
        return prompt.image(uri_of(source.get("url"), "an image's 'url'"))
    raise LineError("the 'type' of an image's 'source' must be base64 or url")
