"""Which chat template a checkpoint is prompted with."""

import logging
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Protocol

from vlmflow_engine.errors import ConfigError
from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.inputs.builtin_templates import TEMPLATES, BuiltinTemplate, TemplatePieces
from vlmflow_engine.inputs.chat_template import ChatTemplate
from vlmflow_engine.inputs.placement import ImagePlacement
from vlmflow_engine.inputs.prompts import Message, PromptOptions
from vlmflow_engine.inputs.spelled_tokens import SpelledTokens
from vlmflow_engine.inputs.template_config import ChatTemplateConfig

_log = logging.getLogger(__name__)


class PromptTemplate(Protocol):
    """Renders messages into the text a model was trained on."""

    stop_words: tuple[str, ...]

    def render(
        self, messages: Iterable[Message], spelled: SpelledTokens, options: PromptOptions = ...
    ) -> str: ...


def choose_template(
    folder: Path,
    placement: ImagePlacement,
    config: ChatTemplateConfig | None = None,
    *,
    model_path: str | None = None,
    asked_for: ImageFormat | None = None,
) -> PromptTemplate:
    """The template that `config` names, else what the checkpoint asks for, else its own, else one
    for the model's name.

    model_path  the model as the caller named it, a folder or a hub's id; None: `folder`
    asked_for   names a built-in template where its config.json does, and one for a model whose
                files and name say nothing
    Raises ModelError, or ConfigError for a wrong config.
    """
    if config is not None:
        config.check()  # it may have been changed since it was made
        return _configured(folder, placement, config)
    if asked_for is not None and asked_for.template is not None:
        pieces = TEMPLATES[asked_for.template]
        if asked_for.system is not None:
            pieces = replace(pieces, meta_instruction=asked_for.system)
        return BuiltinTemplate(asked_for.template, pieces, placement)
    if ChatTemplate.is_in(folder):
        return ChatTemplate.from_folder(folder, placement)
    name = template_name(model_path or str(folder))
    if name is not None:
        _log.info("%s brings no chat template; by its name it gets %r", folder, name)
    elif asked_for is not None and asked_for.fallback_template is not None:
        name = asked_for.fallback_template
        _log.warning(
            "%s brings no chat template, and its name tells none: it gets %r, as most of its kind; "
            "name another one with ChatTemplateConfig",
            folder,
            name,
        )
    else:
        return ChatTemplate.from_folder(folder, placement)  # which says what is missing
    return BuiltinTemplate(name, TEMPLATES[name], placement)


def template_name(model_path: str) -> str | None:
    """The built-in template that goes with a model's name; None if no rule knows it."""
    name = Path(model_path.rstrip("/\\")).name.lower()
    if "llava" in name:
        if "mistral" in name:
            return "mistral"
        if "v1.6-34b" in name:
            return "llava-chatml"
        return "llava-v1" if "v1" in name or "llava-1.5" in name else None
    return "vicuna" if "vicuna" in name else None


def _configured(
    folder: Path, placement: ImagePlacement, config: ChatTemplateConfig
) -> PromptTemplate:
    given = {
        field.name: getattr(config, field.name)
        for field in fields(TemplatePieces)
        if getattr(config, field.name, None) is not None
    }
    if config.model_name == "hf":
        if given:
            _log.warning("%s: no effect on a checkpoint's own template", ", ".join(given))
        where = folder if config.model_path is None else Path(config.model_path)
        return ChatTemplate.from_folder(where, placement)
    if config.model_name not in TEMPLATES and not given:
        raise ConfigError(
            f"no chat template is called {config.model_name!r}, and no pieces of one are given; "
            f"known are hf, {', '.join(TEMPLATES)}"
        )
    if config.model_name not in TEMPLATES:
        _log.warning(
            "no chat template is called %r: taking 'base' with the pieces that are given; known "
            "are hf, %s",
            config.model_name,
            ", ".join(TEMPLATES),
        )
    if "stop_words" in given:
        given["stop_words"] = tuple(given["stop_words"])
    return BuiltinTemplate(
        config.model_name,
        replace(TEMPLATES.get(config.model_name, TemplatePieces()), **given),
        placement,
        is_completion=config.capability == "completion",
    )
