"""A checkpoint's own chat template, rendered in Jinja's sandbox.

What the caller writes is text and nothing else: where it spells a special token (`<image>` in a
caption, say) it is handed to the template as a stand-in that no vocabulary knows, and the tokenizer
later puts the spelled characters back (see `inputs.tokenizer`).
"""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vlmflow_engine.errors import InvalidRequestError, ModelError
from vlmflow_engine.inputs.prompts import ImagePart, Message, TextPart

_PROBE = "vlmflow probe"


class ChatTemplate:
    """Renders messages into the text the model was trained on."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        """`special_tokens` are the variables a template may use, as `bos_token`."""
        # The same environment as transformers: sandboxed, block lines leave no blank behind.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ModelError(f"the chat template cannot be read: {error}") from error
        self._special_tokens = special_tokens
        self._takes_parts = self._renders_parts()

    @classmethod
    def from_folder(cls, folder: Path) -> "ChatTemplate":
        """Find the template in any of the places where checkpoints keep it."""
        tokenizer_config = _read_json(folder / "tokenizer_config.json")
        source: Any = None
        if (path := folder / "chat_template.jinja").is_file():
            try:
                source = path.read_text(encoding="utf-8")
            except ValueError as error:
                raise ModelError(f"{path}: not valid UTF-8: {error}") from error
        for config in (_read_json(folder / "chat_template.json"), tokenizer_config):
            source = source or config.get("chat_template")
        if isinstance(source, list):  # several, by name
            source = {item.get("name"): item.get("template") for item in source}.get("default")
        if not isinstance(source, str):
            raise ModelError(
                f"{folder}: no chat template, neither as chat_template.jinja, nor in "
                "chat_template.json or tokenizer_config.json"
            )
        special_tokens = {
            name: _content(value)
            for name, value in tokenizer_config.items()
            if name.endswith("_token")
        }
        return cls(source, {name: token for name, token in special_tokens.items() if token})

    def render(self, messages: Iterable[Message], spelled: "SpelledTokens") -> str:
        """Return the prompt's text, one image token an image. Raises InvalidRequestError."""
        conversation = [
            {
                "role": message.role,
                "content": self._content(message.parts),
            }
            for message in spelled.hide_all(messages)
        ]
        try:
            return self._render(conversation)
        except Exception as error:  # a template is a program, and may fail as one
            raise InvalidRequestError(
                f"the checkpoint's chat template refuses these messages: {error}"
            ) from error

    def _render(self, conversation: list[dict[str, Any]]) -> str:
        return self._template.render(
            messages=conversation, add_generation_prompt=True, **self._special_tokens
        )

    def _content(self, parts: Sequence[TextPart | ImagePart]) -> Any:
        texts = [part.text for part in parts if isinstance(part, TextPart)]
        if not self._takes_parts and len(texts) == len(parts):
            return "\n".join(texts)
        return [
            {"type": "image"}
            if isinstance(part, ImagePart)
            else {"type": "text", "text": part.text}
            for part in parts
        ]

    def _renders_parts(self) -> bool:
        """Whether a content may be a list of parts: models of text alone expect a str."""
        part = {"type": "text", "text": _PROBE}
        for content, is_parts in (([part], True), (_PROBE, False)):
            try:
                text = self._render([{"role": "user", "content": content}])
            except Exception:  # a template is a program, and may fail as one
                continue
            # Who expects a str writes a list out as Python would, or leaves it out.
            if _PROBE in text and "'type'" not in text:
                return is_parts
        return True


class SpelledTokens:
    """Hides the first character of each special token that a caller's texts spell.

    Tokens are sought in all texts together: a template may put two of them side by side.
    """

    def __init__(self, tokens: Iterable[str], messages: Iterable[Message]) -> None:
        self._tokens = tuple(tokens)
        text = _texts(messages)
        firsts = sorted({token[0] for token in self._tokens if token in text})
        free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in text)
        self._stand_ins = dict(zip(firsts, free, strict=False))  # first character -> private-use

    def __bool__(self) -> bool:
        return bool(self._stand_ins)

    def hide_all(self, messages: Iterable[Message]) -> list[Message]:
        """Replace the first character of each spelled token, wherever its other ones are."""
        messages = list(messages)
        hidden = iter(self.hide(_texts(messages)))
        return [
            Message(
                message.role,
                tuple(
                    TextPart("".join(islice(hidden, len(part.text))))
                    if isinstance(part, TextPart)
                    else part
                    for part in message.parts
                ),
            )
            for message in messages
        ]

    def hide(self, text: str) -> str:
        characters = list(text)
        for token in self._tokens:
            place = text.find(token)
            while place >= 0:
                characters[place] = self._stand_ins[token[0]]
                place = text.find(token, place + 1)
        return "".join(characters)

    def show(self, text: str) -> str:
        """Put the hidden characters back."""
        for character, stand_in in self._stand_ins.items():
            text = text.replace(stand_in, character)
        return text


def _texts(messages: Iterable[Message]) -> str:
    return "".join(
        part.text for message in messages for part in message.parts if isinstance(part, TextPart)
    )


class _Generation(Extension):
    """{% generation %} marks an assistant's words for training; here it is only passed through."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


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
