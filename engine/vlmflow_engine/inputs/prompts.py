"""The forms a prompt may have, all brought into one: OpenAI-style messages of typed parts.

    "Who are you?"
    ("What is it?", image)
    ("What is different?", [image, image])
    [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "https://..."}},
        {"type": "text", "text": "What is it?"}]}]

role     system, user, assistant or tool
content  a text, or a list of parts of type text, image_url, image or image_data
image    a PIL image, bytes of a file, a path, or an http(s), file: or data: URL

In a pair the image stands before the text, whichever came first. A part of a message names its
image by itself, or as `url` or `data` in a dict beside `detail`, `min_pixels`, `max_pixels` or
`max_dynamic_patch`, for models that have a use for them: min_pixels and max_pixels are Qwen2-VL's
and Qwen2.5-VL's, of the resized image, and win over the checkpoint's own. What a message holds
beside role and content goes to the chat template. Videos are handed in as frames.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlmflow_engine.errors import InvalidRequestError
from vlmflow_engine.inputs.image_options import read_image_options

# What may stand for an image: a PIL image, bytes of a file, a path, a file: or data: URL.
ImageSource = Any

IMAGE_TOKEN = "<IMAGE_TOKEN>"  # written by a caller where an image is to stand, for any model

_FORMS = (
    "a prompt is a str, (text, image), (text, [images]), or a list of messages "
    "{'role': ..., 'content': ...}"
)
_ROLES = ("system", "user", "assistant", "tool")
_IMAGE_TYPES = ("image_url", "image", "image_data")
_OTHER_MEDIA = ("video", "audio", "time_series")
_EFFORTS = ("low", "medium", "high", "max")
_RESERVED = ("messages", "tools", "add_generation_prompt")


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    source: ImageSource
    options: Mapping[str, int] = field(default_factory=dict)  # see inputs.image_options


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    parts: tuple[TextPart | ImagePart, ...]
    # Whether the caller wrote each image's place, so that the parts are one text in this order.
    is_placed: bool = False
    extras: Mapping[str, Any] = field(default_factory=dict)  # tool_calls, name, ... for templates


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A prompt that is tokenised already; it holds no images."""

    ids: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """How a prompt is made into text. Raises InvalidRequestError for what is not JSON."""

    do_preprocess: bool = True  # False: the text as it is, without a chat template
    add_generation_prompt: bool | None = None  # None: unless the last message is the assistant's
    tools: Sequence[Mapping[str, Any]] | None = None  # functions that the model may call
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None  # older spelling of chat_template_kwargs' entry
    chat_template_kwargs: Mapping[str, Any] | None = None  # variables of a checkpoint's template

    def __post_init__(self) -> None:
        for name in ("do_preprocess", "add_generation_prompt", "enable_thinking"):
            value = getattr(self, name)
            if not isinstance(value, bool) and (value is not None or name == "do_preprocess"):
                raise InvalidRequestError(f"{name} must be true or false, got {_brief(value)}")
        if self.reasoning_effort not in (None, *_EFFORTS):
            raise InvalidRequestError(
                f"reasoning_effort must be one of {', '.join(_EFFORTS)}, "
                f"got {_brief(self.reasoning_effort)}"
            )
        tools, variables = self.tools, self.chat_template_kwargs
        if tools is not None and not (
            isinstance(tools, list | tuple) and all(isinstance(tool, Mapping) for tool in tools)
        ):
            raise InvalidRequestError(f"tools must be a list of JSON objects, got {_brief(tools)}")
        if variables is not None and not isinstance(variables, Mapping):
            raise InvalidRequestError(
                f"chat_template_kwargs must be a dict, got {_brief(variables)}"
            )
        for name in variables or ():
            if not isinstance(name, str) or name in _RESERVED:
                raise InvalidRequestError(
                    f"chat_template_kwargs may not hold {_brief(name)}: it is no name, or one "
                    "with an argument of its own"
                )
        _check_json("tools", tools)
        _check_json("chat_template_kwargs", variables)

    def template_variables(self) -> dict[str, Any]:
        """What a checkpoint's template sees beside the messages."""
        named = {
            "reasoning_effort": self.reasoning_effort,
            "enable_thinking": self.enable_thinking,
        }
        given = {name: value for name, value in named.items() if value is not None}
        return {"tools": self.tools or None} | given | dict(self.chat_template_kwargs or {})


def is_single_prompt(prompts: Any) -> bool:
    """Tell one prompt from a batch: a str, a pair, or a list whose first item is a message."""
    if isinstance(prompts, str | TokenIds):
        return True
    if isinstance(prompts, tuple):
        return len(prompts) == 2
    return isinstance(prompts, list) and bool(prompts) and isinstance(prompts[0], Mapping)


def to_messages(prompt: Any) -> list[Message]:
    """Bring any form of prompt into messages. Raises InvalidRequestError."""
    messages = _to_messages(prompt)
    for message in messages:
        _check_json(f"what a {message.role} message holds beside its content", message.extras)
        for part in message.parts:
            if isinstance(part, TextPart):
                try:
                    part.text.encode()
                except UnicodeEncodeError as error:
                    raise InvalidRequestError(
                        f"a text holds half a character at position {error.start}: it is no Unicode"
                    ) from error
    return messages


def history_messages(history: Sequence[tuple[Any, str]], prompt: Any) -> list[dict[str, Any]]:
    """Put earlier prompts, each with its answer, and a new prompt into one list of messages.

    Prompts have any form but TokenIds; images stay what they were. Raises InvalidRequestError.
    """
    conversation: list[dict[str, Any]] = []
    for asked, answer in history:
        conversation += [_as_given(message) for message in to_messages(asked)]
        conversation.append({"role": "assistant", "content": answer})
    return conversation + [_as_given(message) for message in to_messages(prompt)]


def _to_messages(prompt: Any) -> list[Message]:
    if isinstance(prompt, str):
        return [Message("user", (TextPart(prompt),))]
    if isinstance(prompt, tuple):
        return [_pair(prompt)]
    if isinstance(prompt, list) and prompt and all(isinstance(item, Mapping) for item in prompt):
        return [_message(item) for item in prompt]
    raise InvalidRequestError(f"unknown form of prompt {_brief(prompt)}: {_FORMS}")


def _pair(pair: tuple[Any, ...]) -> Message:
    if len(pair) != 2:
        raise InvalidRequestError(f"a prompt tuple has two items, got {len(pair)}: {_FORMS}")
    text, images = pair
    if not isinstance(text, str) or (
        isinstance(images, str) and _likeness(text) > _likeness(images)
    ):
        text, images = images, text
    if not isinstance(text, str):
        raise InvalidRequestError(
            f"neither item of {_brief(pair)} is a text: {_FORMS}; several prompts are a list"
        )
    sources = images if isinstance(images, list | tuple) else [images]
    # Images before the text, whichever came first: what the models were trained on.
    return Message("user", (*(ImagePart(source) for source in sources), TextPart(text)))


_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://\S+|/\S*|\.\.?/\S*", re.IGNORECASE)
_PICTURE_FILE = re.compile(r"\S+\.(png|jpe?g|webp|gif|bmp|tiff?)", re.IGNORECASE)


def _likeness(text: str) -> int:
    """How much a str looks like an image: 0 not at all, 1 begins as an address, 2 is one."""
    if text[:11].lower() == "data:image/":
        return 2
    if len(text) < 8192 and (_ADDRESS.fullmatch(text) or _PICTURE_FILE.fullmatch(text)):
        return 2
    return 1 if re.match("https?://", text, re.IGNORECASE) else 0


def _message(message: Mapping[str, Any]) -> Message:
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise InvalidRequestError(
            f"a message's role is one of {', '.join(_ROLES)}, got {_brief(role)}"
        )
    extras = {key: value for key, value in message.items() if key not in ("role", "content")}
    if content is None or isinstance(content, str):
        return Message(role, (TextPart(content or ""),), extras=extras)
    if not isinstance(content, list):
        raise InvalidRequestError(
            f"a message's content is a str or a list of parts, got {_brief(content)}"
        )
    parts = tuple(_part(item) for item in content)
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    if texts and len(texts) == len(parts):  # LMDeploy's rule where there is no image
        parts = (TextPart("\n".join(texts)),)
    return Message(role, parts, extras=extras)


def _part(item: Any) -> TextPart | ImagePart:
    if isinstance(item, str):
        return TextPart(item)
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind == "text" and isinstance(item.get("text"), str):
        return TextPart(item["text"])
    if kind in _IMAGE_TYPES:
        value, inside = item.get(kind), item
        if isinstance(value, Mapping):
            inside, value = value, value.get("url", value.get("data"))
        if value is None:
            raise InvalidRequestError(f"a part of type {kind!r} names no image")
        return ImagePart(value, read_image_options(item, inside))
    if isinstance(kind, str) and any(medium in kind[:40] for medium in _OTHER_MEDIA):
        raise InvalidRequestError(
            f"a part of type {_brief(kind)} is not supported: text and images are; hand in the "
            "frames of a video as images"
        )
    raise InvalidRequestError(
        "a part of a message is {'type': 'text', 'text': ...} or "
        f"{{'type': 'image_url', 'image_url': {{'url': ...}}}}, got {_brief(item)}"
    )


def _as_given(message: Message) -> dict[str, Any]:
    """Write a message as a caller would."""
    content = [
        {"type": "text", "text": part.text}
        if isinstance(part, TextPart)
        else {"type": "image", "image": {"data": part.source, **part.options}}
        for part in message.parts
    ]
    return {"role": message.role, "content": content, **message.extras}


def _check_json(name: str, value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{name} must be JSON: {str(error)[:200]}") from error


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


DEFAULT_OPTIONS = PromptOptions()
