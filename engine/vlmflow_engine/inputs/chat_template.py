"""A checkpoint's own chat template, rendered in Jinja's sandbox.

What the caller writes is text and nothing else: where it spells a special token (`<image>` in a
caption, say) it is handed to the template as a stand-in that no vocabulary knows, and the tokenizer
later puts the spelled characters back (see `inputs.tokenizer`).
"""

import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vlmflow_engine.errors import InvalidRequestError, ModelError
from vlmflow_engine.inputs.prompts import ImagePart, Message, TextPart


class ChatTemplate:
    """Renders messages into the text the model was trained on."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        """`special_tokens` are the variables a template may use, as `bos_token`."""
        # The same environment as transformers: sandboxed, block lines leave no blank behind.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value, **options: json.dumps(
            value, ensure_ascii=False, **options
        )
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ModelError(f"the chat template cannot be read: {error}") from error
        self._special_tokens = special_tokens

    @classmethod
    def from_folder(cls, folder: Path) -> "ChatTemplate":
        """Find the template in any of the places where checkpoints keep it."""
        tokenizer_config = _read_json(folder / "tokenizer_config.json")
        source: Any = None
        if (path := folder / "chat_template.jinja").is_file():
            source = path.read_text()
        for config in (_read_json(folder / "chat_template.json"), tokenizer_config):
            source = source or config.get("chat_template")
        if not isinstance(source, str):
            raise ModelError(
                f"{folder}: no chat template, neither as chat_template.jinja, nor in "
                "chat_template.json or tokenizer_config.json"
            )
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        special_tokens = {name: _content(tokenizer_config.get(name)) for name in names}
        return cls(source, {name: token for name, token in special_tokens.items() if token})

    def render(self, messages: Iterable[Message], spelled: "SpelledTokens") -> str:
        """Return the prompt's text, one image token an image. Raises InvalidRequestError."""
        conversation = [
            {
                "role": message.role,
                "content": [
                    {"type": "image"}
                    if isinstance(part, ImagePart)
                    else {"type": "text", "text": spelled.hide(part.text)}
                    for part in message.parts
                ],
            }
            for message in messages
        ]
        try:
            return self._template.render(
                messages=conversation, add_generation_prompt=True, **self._special_tokens
            )
        except TemplateError as error:
            raise InvalidRequestError(
                f"the checkpoint's chat template refuses these messages: {error}"
            ) from error


class SpelledTokens:
    """Stand-ins for the special tokens that a caller's texts spell."""

    def __init__(self, tokens: Iterable[str], messages: Iterable[Message]) -> None:
        text = "".join(
            part.text
            for message in messages
            for part in message.parts
            if isinstance(part, TextPart)
        )
        # Longer ones first, so that <image_end> is not read as <image> with a tail.
        spelled = sorted((token for token in tokens if token in text), key=len, reverse=True)
        free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in text)
        self._stand_ins = dict(zip(spelled, free, strict=False))  # token -> private-use character

    def __bool__(self) -> bool:
        return bool(self._stand_ins)

    def hide(self, text: str) -> str:
        """Replace each spelled special token in a caller's text."""
        for token, stand_in in self._stand_ins.items():
            text = text.replace(token, stand_in)
        return text

    def show(self, text: str) -> str:
        """Put the spelled tokens back."""
        for token, stand_in in self._stand_ins.items():
            text = text.replace(stand_in, token)
        return text


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _content(token: Any) -> str | None:
    """A special token is stored as a string or as {'content': ...}."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
