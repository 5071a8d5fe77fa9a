"""The forms a prompt may have, brought into one: OpenAI-style messages of typed parts.

A prompt is a text, a pair of text and image(s) in either order, or a list of messages.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlmflow_engine.errors import InvalidRequestError

# What may stand for an image: a PIL image, bytes of a file, a path, a file: or data: URL.
ImageSource = Any

_FORMS = (
    "a prompt is a str, (text, image), (text, [images]), or a list of messages "
    "{'role': ..., 'content': ...}"
)
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    source: ImageSource


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    parts: tuple[TextPart | ImagePart, ...]


def is_single_prompt(prompts: Any) -> bool:
    """Tell one prompt from a batch: a str, a pair, or a list whose first item is a message."""
    if isinstance(prompts, str | tuple):
        return True
    return isinstance(prompts, list) and bool(prompts) and isinstance(prompts[0], Mapping)


def to_messages(prompt: Any) -> list[Message]:
    """Bring any form of prompt into messages. Raises InvalidRequestError."""
    messages = _to_messages(prompt)
    for message in messages:
        for part in message.parts:
            if isinstance(part, TextPart):
                try:
                    part.text.encode()
                except UnicodeEncodeError as error:
                    raise InvalidRequestError(
                        f"a text holds half a character at position {error.start}: it is no Unicode"
                    ) from error
    return messages


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
    first, second = pair
    # Two strings: the first is the text. Only a text that cannot be one changes places.
    text, images = (first, second) if isinstance(first, str) else (second, first)
    if not isinstance(text, str):
        raise InvalidRequestError(f"neither item of {_brief(pair)} is a text: {_FORMS}")
    sources = images if isinstance(images, list) else [images]
    # Images before the text, whichever came first: what LLaVA was trained on.
    return Message("user", (*(ImagePart(source) for source in sources), TextPart(text)))


def _message(message: Mapping[str, Any]) -> Message:
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise InvalidRequestError(
            f"a message's role is one of {', '.join(_ROLES)}, got {_brief(role)}"
        )
    if content is None or isinstance(content, str):
        return Message(role, (TextPart(content or ""),))
    if not isinstance(content, list):
        raise InvalidRequestError(
            f"a message's content is a str or a list of parts, got {_brief(content)}"
        )
    return Message(role, tuple(_part(item) for item in content))


def _part(item: Any) -> TextPart | ImagePart:
    if isinstance(item, str):
        return TextPart(item)
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind == "text" and isinstance(item.get("text"), str):
        return TextPart(item["text"])
    if kind in ("image_url", "image", "image_data"):
        value = item.get(kind)
        if isinstance(value, Mapping):
            value = value.get("url", value.get("data"))
        if value is None:
            raise InvalidRequestError(f"a part of type {kind!r} names no image")
        return ImagePart(value)
    raise InvalidRequestError(
        "a part of a message is {'type': 'text', 'text': ...} or "
        f"{{'type': 'image_url', 'image_url': {{'url': ...}}}}, got {_brief(item)}"
    )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True, slots=True)
class PromptOptions:
    do_preprocess: bool = True


@dataclass(frozen=True, slots=True)
class TokenIds:
    ids: tuple[int, ...]


def history_messages(history: Any, prompt: Any) -> Any:
    messages = []
    for earlier, answer in history:
        messages += [
            {
                "role": m.role,
                "content": [
                    {"type": "text", "text": p.text}
                    if isinstance(p, TextPart)
                    else {"type": "image", "image": p.source}
                    for p in m.parts
                ],
            }
            for m in to_messages(earlier)
        ]
        messages.append({"role": "assistant", "content": answer})
    messages += [
        {
            "role": m.role,
            "content": [
                {"type": "text", "text": p.text}
                if isinstance(p, TextPart)
                else {"type": "image", "image": p.source}
                for p in m.parts
            ],
        }
        for m in to_messages(prompt)
    ]
    return messages
