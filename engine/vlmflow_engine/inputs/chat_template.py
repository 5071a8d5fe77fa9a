"""A checkpoint's own chat template, rendered in Jinja's sandbox."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vlmflow_engine.errors import InvalidRequestError, ModelError
from vlmflow_engine.inputs.placement import ImagePlacement
from vlmflow_engine.inputs.prompts import ImagePart, Message, PromptOptions, TextPart
from vlmflow_engine.inputs.spelled_tokens import SpelledTokens
from vlmflow_engine.json_file import read_object

_DEFAULTS = PromptOptions()
_PROBE = "What does the probe show"


class ChatTemplate:
    """Renders messages into the text the model was trained on."""

    stop_words: tuple[str, ...] = ()  # its end tokens are the model's own

    def __init__(
        self,
        source: str,
        special_tokens: dict[str, str],
        placement: ImagePlacement | None = None,
    ) -> None:
        """Compile a template. Raises ModelError.

        special_tokens  the variables a template may use, as `bos_token`
        placement       for what the template leaves to the caller: places that users wrote, and
                        templates that take a message's content for a str; None: all is lists
        """
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
        self._placement = placement or ImagePlacement("")
        self._str_roles = frozenset({"tool"})  # whose content is handed over as a str
        if placement is not None:
            self._probe(placement)

    @classmethod
    def from_folder(cls, folder: Path, placement: ImagePlacement | None = None) -> "ChatTemplate":
        """Load the template of a checkpoint. Raises ModelError if there is none."""
        source = _find_source(folder)
        if not isinstance(source, str):
            raise ModelError(
                f"{folder}: no chat template, neither as chat_template.jinja, nor in "
                "chat_template.json or tokenizer_config.json; name one with ChatTemplateConfig"
            )
        special_tokens = {
            name: _content(value)
            for name, value in _read_json(folder / "tokenizer_config.json").items()
            if name.endswith("_token")
        }
        return cls(
            source, {name: token for name, token in special_tokens.items() if token}, placement
        )

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a checkpoint brings a template. Raises ModelError if a file cannot be read."""
        return bool(_find_source(folder))

    def render(
        self,
        messages: Iterable[Message],
        spelled: SpelledTokens,
        options: PromptOptions = _DEFAULTS,
    ) -> str:
        """Return the prompt's text, one image token an image. Raises InvalidRequestError."""
        write = partial(
            self._write, str_roles=self._str_roles, add_prompt=options.add_generation_prompt
        )
        return spelled.render(write, messages, options.template_variables())

    def _write(
        self,
        messages: Sequence[Message],
        variables: dict[str, Any],
        *,
        str_roles: frozenset[str],
        add_prompt: bool | None,
    ) -> str:
        mark = None
        if add_prompt is None and messages and messages[-1].role == "assistant":
            messages, mark = _mark_end(messages)
        try:
            text: str = self._template.render(
                # What transformers always defines.
                {"documents": None, "tools": None}
                | self._special_tokens
                | variables
                | {
                    "messages": [self._as_json(message, str_roles) for message in messages],
                    "add_generation_prompt": mark is None and add_prompt is not False,
                }
            )
        except Exception as error:  # a template is a program, and may fail as one
            raise InvalidRequestError(
                f"the checkpoint's chat template refuses these messages: {error}"
            ) from error
        return text if mark is None else _cut(text, mark)

    def _as_json(self, message: Message, str_roles: frozenset[str]) -> dict[str, Any]:
        """A message as templates take it."""
        content: Any
        if message.role in str_roles:
            content = self._placement.write(message)
        elif message.is_placed:
            content = [{"type": "text", "text": self._placement.write(message)}]
        else:
            content = [
                {"type": "image"}
                if isinstance(part, ImagePart)
                else {"type": "text", "text": part.text}
                for part in message.parts
            ]
        return {"role": message.role, "content": content, **message.extras}

    def _probe(self, placement: ImagePlacement) -> None:
        """Find out of which roles the template takes the content for a str."""
        asked = Message("user", (ImagePart(None), TextPart(_PROBE)))
        for role, messages in {
            "user": [asked],
            "system": [Message("system", (TextPart(_PROBE),)), Message("user", (TextPart("A"),))],
            "assistant": [
                Message("user", (TextPart("A"),)),
                Message("assistant", (TextPart(_PROBE),)),
                Message("user", (TextPart("B"),)),
            ],
        }.items():
            num_images = 1 if role == "user" else 0
            for str_roles in (self._str_roles, self._str_roles | {role}):
                try:
                    text = self._write(messages, {}, str_roles=str_roles, add_prompt=None)
                except InvalidRequestError:
                    continue
                is_taken = text.count(_PROBE) == 1 and f"'{_PROBE}'" not in text
                if is_taken and text.count(placement.token) == num_images:
                    self._str_roles = str_roles
                    break


def _mark_end(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """Put a mark behind the last message; return it with the messages."""
    texts = "".join(
        part.text for message in messages for part in message.parts if isinstance(part, TextPart)
    )
    mark = next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in texts)
    *others, last = messages
    parts = list(last.parts)
    end = parts.pop() if parts and isinstance(parts[-1], TextPart) else TextPart("")
    assert isinstance(end, TextPart)
    # The blank behind it tells whether the template strips a message.
    parts.append(TextPart(f"{end.text}{mark} "))
    return [*others, replace(last, parts=tuple(parts))], mark


def _cut(text: str, mark: str) -> str:
    """Return what stands before a mark, without the blanks that the template strips there."""
    before, found, behind = text.rpartition(mark)
    if not found:
        raise InvalidRequestError(
            "the checkpoint's chat template leaves out the end of the assistant's message that is "
            "to be continued; end with a user's message"
        )
    return before if behind.startswith(" ") else before.rstrip()


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


def _find_source(folder: Path) -> Any:
    """The template, from any of the places where checkpoints keep it; None if there is none."""
    source: Any = None
    if (path := folder / "chat_template.jinja").is_file():
        try:
            source = path.read_text(encoding="utf-8")
        except ValueError as error:
            raise ModelError(f"{path}: not valid UTF-8: {error}") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        source = source or _read_json(folder / name).get("chat_template")
    if isinstance(source, list):  # several, by name
        source = {item.get("name"): item.get("template") for item in source}.get("default")
    return source


def _read_json(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def _content(token: Any) -> str | None:
    """A special token is stored as a string or as {'content': ...}."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
