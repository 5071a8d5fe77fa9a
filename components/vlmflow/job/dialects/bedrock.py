"""Bedrock's batch dialect: bodies of Converse, and of InvokeModel in two vendors' shapes."""

from typing import Any

from vlmflow.job.dialects.anthropic import read_params
from vlmflow.job.dialects.asked import Asked, OneModel, list_of, object_of, without
from vlmflow.job.dialects.item import LineError
from vlmflow.job.dialects.messages import Messages, data_uri, text_part
from vlmflow.job.dialects.openai import read_chat
from vlmflow.job.dialects.options import refuse_others, renamed, sampled
from vlmflow.job.record import Record

_FORMATS = ("png", "jpeg", "gif", "webp")
_INFERENCE = {
    "maxTokens": "max_new_tokens",
    "temperature": "temperature",
    "topP": "top_p",
    "stopSequences": "stop_words",
}
_OPTIONS = {
    "inferenceConfig": _INFERENCE,
    "additionalModelRequestFields": {"top_k": "top_k", "topK": "top_k"},
}
_FIELDS = frozenset(
    (
        *("messages", "system", "inferenceConfig", "additionalModelRequestFields"),
        *("additionalModelResponseFieldPaths", "performanceConfig", "requestMetadata"),
    )
)
_CONVERSE_ONLY_FIELDS = (
    *("inferenceConfig", "additionalModelRequestFields", "toolConfig", "guardrailConfig"),
    *("promptVariables", "performanceConfig", "requestMetadata"),
)


class BedrockDialect:
    name = "bedrock"
    id_field = "recordId"
    id_is_optional = True

    def __init__(self, model: OneModel) -> None:
        self._model = model

    def record(self, content: dict[str, Any], record_id: str, ordinal: int, line: int) -> Record:
        """Raises LineError."""
        body = object_of(content, "modelInput")
        if "messages" not in body:
            raise LineError(
                "'modelInput' must be a body of Converse, of Anthropic messages or of OpenAI chat "
                "completions, all with 'messages'"
            )
        kind = kind_of_body(body)
        if kind == "converse":
            asked = _read_converse(body)
        elif kind == "anthropic":
            asked = read_params(body, "modelInput")
        else:
            asked = read_chat(body)
        self._model.check(asked.model)
        return asked.record(record_id, ordinal, line, without(content, "recordId", "modelInput"))


def kind_of_body(body: dict[str, Any]) -> str:
    """Say whose a body with messages is: converse, anthropic or openai."""
    if any(name in body for name in _CONVERSE_ONLY_FIELDS):
        return "converse"
    if "anthropic_version" in body:
        return "anthropic"
    blocks = list(_blocks(body))
    if any("type" not in block for block in blocks):
        return "converse"
    if "system" in body or any(block.get("type") == "image" for block in blocks):
        return "anthropic"
    return "openai"


def _blocks(body: dict[str, Any]) -> Any:
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for block in content if isinstance(content, list) else ():
            if isinstance(block, dict):
                yield block


def _read_converse(body: dict[str, Any]) -> Asked:
    refuse_others(body, "modelInput", known=_FIELDS, only={})
    prompt = Messages()
    if body.get("system"):
        prompt.add("system", _parts(list_of(body, "system"), prompt))
    for message in list_of(body, "messages"):
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            raise LineError("a message is an object with 'role' (user or assistant) and 'content'")
        prompt.add(message["role"], _parts(list_of(message, "content"), prompt))
    generation: dict[str, Any] = {}
    for name, names in _OPTIONS.items():
        if body.get(name) is not None:
            fields = object_of(body, name)
            refuse_others(fields, name, known=names, only={})
            generation |= renamed(fields, names)
    return Asked(prompt, sampled(generation), body.get("requestMetadata"))


def _parts(blocks: list[Any], prompt: Messages) -> list[dict[str, Any]]:
    parts = []
    for block in blocks:
        if not isinstance(block, dict) or len(block) != 1:
            raise LineError("a block is an object with one field, 'text' or 'image'")
        if "cachePoint" in block:  # tells another cache what it may keep
            continue
        if "text" in block:
            parts.append(text_part(block["text"], "a block's 'text'"))
        elif "image" in block:
            parts.append(prompt.image(_image_uri(object_of(block, "image"))))
        else:
            raise LineError(f"a block must be a text or an image, it is {next(iter(block))[:80]!r}")
    return parts


def _image_uri(image: dict[str, Any]) -> str:
    source = object_of(image, "source")
    if "s3Location" in source:
        uri = object_of(source, "s3Location").get("uri")
        if not isinstance(uri, str) or not uri.startswith("s3://"):
            raise LineError("the 'uri' of an 's3Location' must begin with s3://")
        return uri
    if image.get("format") not in _FORMATS:
        raise LineError(f"an image's 'format' must be one of {', '.join(_FORMATS)}")
    return data_uri(f"image/{image['format']}", source.get("bytes"), "an image's 'bytes'")
