"""`ChatTemplateConfig`: which chat template to use, and what to change in it."""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from vlmflow_engine.checks import check_choice
from vlmflow_engine.errors import ConfigError

CAPABILITIES = (None, "completion", "infilling", "chat", "python")


@dataclass(slots=True)
class ChatTemplateConfig:
    """A template by name, and those of its pieces that are to be others (None: as they are).

        ChatTemplateConfig("vicuna", meta_instruction="You answer in one word.")

    Names are hf, base, vicuna, wizardlm, llava-v1, mistral, mixtral, llama2, llava-chatml and
    internvl-zh-hermes2, internvl2-internlm2, internvl2_5, internvl-internlm2, internvl-phi3,
    internvl2-phi3. With another name and pieces of one, it is "base", which has none, with those
    pieces.

    Raises ConfigError for a value that is not allowed; `pipeline` raises it for a name that it
    does not know and no pieces.
    """

    model_name: str  # a built-in template's name, or "hf" for the checkpoint's own
    model_path: str | None = None  # folder whose template "hf" means; None: the model's
    system: str | None = None  # before a system message
    meta_instruction: str | None = None  # the system message where the caller gives none
    eosys: str | None = None  # behind a system message
    user: str | None = None  # before a user's message
    eoh: str | None = None  # behind a user's message
    assistant: str | None = None  # before an assistant's message, and before the answer
    eoa: str | None = None  # behind an assistant's message
    tool: str | None = None  # before a tool's message
    eotool: str | None = None  # behind a tool's message
    separator: str | None = None  # behind eoa, between turns
    # "completion": a text is used as it is; "chat", "infilling", "python" and None: as a message.
    capability: str | None = None
    stop_words: list[str] | None = None  # texts that end an answer

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise ConfigError if a value is not allowed now."""
        if not isinstance(self.model_name, str) or not self.model_name:
            raise ConfigError(
                f"model_name must be the name of a chat template, got {self.model_name!r}"
            )
        check_choice("capability", self.capability, CAPABILITIES)
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "stop_words" and not isinstance(value, str | None):
                raise ConfigError(f"{item.name} of a chat template must be a str, got {value!r}")
        words = self.stop_words
        if words is not None and not (
            isinstance(words, list) and all(isinstance(word, str) and word for word in words)
        ):
            raise ConfigError(f"stop_words must be a list of texts, got {words!r}")

    def to_json(self, file_path: str | os.PathLike[str] | None = None) -> str:
        """Return the config as a JSON object, and write it to a file if one is named."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=4)
        if file_path is not None:
            Path(file_path).write_text(text, encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, file_or_string: str | os.PathLike[str]) -> Self:
        """Read a config from a file or from JSON itself; without model_name it is a base template.

        Raises ConfigError.
        """
        text = os.fspath(file_or_string)
        if not text.lstrip().startswith("{"):
            try:
                text = Path(text).read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"a chat template is read from a file or from JSON, not {text[:200]!r}: {error}"
                ) from error
        try:
            values: Any = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"a chat template is no valid JSON: {error}") from error
        known = {item.name for item in fields(cls)}
        if not isinstance(values, dict) or not values.keys() <= known:
            unknown = sorted(values.keys() - known) if isinstance(values, dict) else values
            raise ConfigError(
                f"a chat template is a JSON object of {', '.join(sorted(known))}, got {unknown!r}"
            )
        values.setdefault("model_name", "base")
        return cls(**values)
