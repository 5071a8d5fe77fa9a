"""OpenAI's batch dialect: requests to `/v1/chat/completions` and `/v1/responses`."""

from typing import Any

from vlmflow.job.dialects.asked import Asked, OneModel, list_of, object_of, without
from vlmflow.job.dialects.item import LineError
from vlmflow.job.dialects.messages import Messages, text_part, uri_of
from vlmflow.job.dialects.options import refuse_others, renamed, sampled
from vlmflow.job.record import Record

CHAT_URL = "/v1/chat/completions"
RESPONSES_URL = "/v1/responses"

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TEXT_TYPES = ("text", "input_text", "output_text")

_GENERATION = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "max_output_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",  # this one and the next few are vLLM's
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "min_tokens": "min_new_tokens",
    "ignore_eos": "ignore_eos",
    "stop_token_ids": "stop_token_ids",
    "stop": "stop_words",
    "seed": "random_seed",
}
_HARMLESS = frozenset(
    (
        *("metadata", "model", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention"),
        *("safety_identifier", "service_tier", "store", "stream_options", "user"),
    )
)
# What would have another answer than one text, or need what a batch has not.
_ONLY: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "background": (False,),
    "best_of": (1,),
    "conversation": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "previous_response_id": (),
    "reasoning": (),
    "reasoning_effort": ("none",),
    "stream": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
    "web_search_options": (),
}
_CHAT_FIELDS = _HARMLESS | _GENERATION.keys() | {"messages", "response_format"}
_RESPONSES_FIELDS = _HARMLESS | _GENERATION.keys() | {"input", "instructions", "text"}


class OpenAIDialect:
    name = "openai"
    id_field = "custom_id"
    id_is_optional = False

    def __init__(self, model: OneModel) -> None:
        self._model = model

    def record(self, content: dict[str, Any], record_id: str, ordinal: int, line: int) -> Record:
        """Raises LineError."""
        if content.get("method", "POST") != "POST":
            raise LineError("'method' must be 'POST'")
        body = object_of(content, "body")
        url = content.get("url")
        if url == CHAT_URL:
            asked = read_chat(body)
        elif url == RESPONSES_URL:
            asked = read_response(body)
        else:
            shown = f"{url[:80]!r}" if isinstance(url, str) else "missing"
            raise LineError(f"'url' must be {CHAT_URL!r} or {RESPONSES_URL!r}, it is {shown}")
        self._model.check(asked.model)
        further = without(content, "custom_id", "method", "url", "body")
        return asked.record(record_id, ordinal, line, further)


def read_chat(body: dict[str, Any]) -> Asked:
    """Read the body of a chat completion. Raises LineError."""
    refuse_others(body, "body", known=_CHAT_FIELDS, only=_ONLY)
    prompt = Messages()
    for message in list_of(body, "messages"):
        _add_message(message, prompt)
    return _asked(body, prompt, body.get("response_format"))


def read_response(body: dict[str, Any]) -> Asked:
    """Read the body of a response. Raises LineError."""
    refuse_others(body, "body", known=_RESPONSES_FIELDS, only=_ONLY)
    prompt = Messages()
    instructions = body.get("instructions")
    if instructions is not None:
        prompt.add("system", text_part(instructions, "'instructions'")["text"])
    if isinstance(body.get("input"), str):
        prompt.add("user", body["input"])
    else:
        for message in list_of(body, "input"):
            if isinstance(message, dict) and message.get("type", "message") != "message":
                raise LineError("an element of 'input' must be a message")
            _add_message(message, prompt)
    text = body.get("text") or {}
    form = text.get("format") if isinstance(text, dict) else None
    if isinstance(form, dict) and form.get("type") == "json_schema":
        form = {"type": "json_schema", "json_schema": without(form, "type")}
    return _asked(body, prompt, form)


def _asked(body: dict[str, Any], prompt: Messages, form: Any) -> Asked:
    generation = sampled(renamed(body, _GENERATION))
    if form is not None and form != {"type": "text"}:
        generation["response_format"] = form
    return Asked(prompt, generation, body.get("metadata"), body.get("model"))


def _add_message(message: Any, prompt: Messages) -> None:
    if not isinstance(message, dict):
        raise LineError("a message is an object with 'role' and 'content'")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise LineError(f"a message's 'role' must be one of {', '.join(_ROLES)}")
    if message.get("tool_calls") or message.get("function_call") or message.get("audio"):
        raise LineError("messages with calls of tools or with audio are not supported")
    content = message.get("content")
    if isinstance(content, list):
        prompt.add(_ROLES[role], [_part(part, prompt) for part in content])
    else:
        prompt.add(_ROLES[role], text_part(content, "a message's 'content'")["text"])


def _part(part: Any, prompt: Messages) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXT_TYPES:
        return text_part(part.get("text"), "a part's 'text'")
    if kind in ("image_url", "input_image"):
        value = part.get("image_url")
        if isinstance(value, dict):
            value = value.get("url")
        if value is None and part.get("file_id") is not None:
            raise LineError("an image by 'file_id' is not supported; give its 'image_url'")
        return prompt.image(uri_of(value, "'image_url'"))
    shown = f"{kind[:80]!r}" if isinstance(kind, str) else "missing"
    raise LineError(f"a part's 'type' must be a text's or an image_url, it is {shown}")
