"""Gemini's batch dialect, as Vertex AI reads it: `{"request": {"contents": ...}}`.

Fields may be spelled `inlineData` or `inline_data`: both are JSON of the same message.
"""

import re
from typing import Any

from vlmflow.job.dialects.asked import Asked, list_of, object_of, without
from vlmflow.job.dialects.item import LineError
from vlmflow.job.dialects.messages import Messages, data_uri, text_part, uri_of
from vlmflow.job.dialects.options import refuse_others, renamed, sampled
from vlmflow.job.record import Record

_ROLES = {"user": "user", "model": "assistant"}
_GENERATION = {
    "maxOutputTokens": "max_new_tokens",
    "temperature": "temperature",
    "topP": "top_p",
    "topK": "top_k",
    "stopSequences": "stop_words",
    "seed": "random_seed",
}
_FIELDS = frozenset(
    ("contents", "systemInstruction", "generationConfig", "safetySettings", "labels")
)
_ONLY: dict[str, tuple[Any, ...]] = {"tools": ([],)}
_CONFIG_FIELDS = _GENERATION.keys() | {"responseMimeType", "responseJsonSchema"}
_CONFIG_ONLY: dict[str, tuple[Any, ...]] = {
    "candidateCount": (1,),
    "frequencyPenalty": (0,),
    "presencePenalty": (0,),
    "responseLogprobs": (False,),
    "responseModalities": (["TEXT"],),
}
_MIME_TYPES = ("text/plain", "application/json")


class GeminiDialect:
    name = "gemini"
    id_field = "key"
    id_is_optional = True

    def record(self, content: dict[str, Any], record_id: str, ordinal: int, line: int) -> Record:
        """Raises LineError."""
        request = _in_camel_case(object_of(content, "request"))
        refuse_others(request, "request", known=_FIELDS, only=_ONLY)
        prompt = Messages()
        if request.get("systemInstruction") is not None:
            _add(object_of(request, "systemInstruction"), "system", prompt)
        for message in list_of(request, "contents"):
            role = message.get("role", "user") if isinstance(message, dict) else None
            if not isinstance(role, str) or role not in _ROLES:
                raise LineError("an element of 'contents' has 'role' (user or model) and 'parts'")
            _add(message, _ROLES[role], prompt)
        config = {}
        if request.get("generationConfig") is not None:
            config = _generation(_in_camel_case(object_of(request, "generationConfig")))
        asked = Asked(prompt, config, request.get("labels"))
        return asked.record(record_id, ordinal, line, without(content, "key", "request"))


def _generation(config: dict[str, Any]) -> dict[str, Any]:
    refuse_others(config, "generationConfig", known=_CONFIG_FIELDS, only=_CONFIG_ONLY)
    generation = sampled(renamed(config, _GENERATION))
    kind = config.get("responseMimeType") or "text/plain"
    if kind not in _MIME_TYPES:
        raise LineError(f"'responseMimeType' must be one of {', '.join(_MIME_TYPES)}")
    if config.get("responseJsonSchema") is not None:
        schema = {"name": "response", "schema": config["responseJsonSchema"]}
        generation["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif kind == "application/json":
        generation["response_format"] = {"type": "json_object"}
    return generation


def _add(message: dict[str, Any], role: str, prompt: Messages) -> None:
    prompt.add(role, [_part(part, prompt) for part in list_of(message, "parts")])


def _part(part: Any, prompt: Messages) -> dict[str, Any]:
    if isinstance(part, dict):
        part = _in_camel_case(part)
        if "text" in part:
            return text_part(part["text"], "a part's 'text'")
        if "inlineData" in part:
            data = _in_camel_case(object_of(part, "inlineData"))
            uri = data_uri(data.get("mimeType"), data.get("data"), "the 'data' of 'inlineData'")
            return prompt.image(uri)
        if "fileData" in part:
            file = _in_camel_case(object_of(part, "fileData"))
            uri = uri_of(file.get("fileUri"), "'fileUri'")
            if uri.lstrip().lower().startswith("gs:"):
                raise LineError("gs:// is not read; copy the images to S3 and name them s3://")
            return prompt.image(uri)
    raise LineError("a part must be an object with 'text', 'inlineData' or 'fileData'")


def _in_camel_case(fields: dict[str, Any]) -> dict[str, Any]:
    if not any("_" in name for name in fields):
        return fields
    return {
        re.sub("_([a-z])", lambda match: match[1].upper(), name): value
        for name, value in fields.items()
    }
