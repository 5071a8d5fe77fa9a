"""A config names the template; without one the checkpoint's own is used, then its name's."""

import json
import logging
from dataclasses import fields
from pathlib import Path

import pytest

from vlmflow_engine.errors import ConfigError, ModelError
from vlmflow_engine.inputs.builtin_templates import TEMPLATES, TemplatePieces
from vlmflow_engine.inputs.placement import ImagePlacement
from vlmflow_engine.inputs.prompts import to_messages
from vlmflow_engine.inputs.spelled_tokens import SpelledTokens
from vlmflow_engine.inputs.template_choice import PromptTemplate, choose_template, template_name
from vlmflow_engine.inputs.template_config import ChatTemplateConfig

PLACEMENT = ImagePlacement("<image>")
OWN = "own: {% for part in messages[0].content %}{{ part.text }}{% endfor %}{{ bos_token }}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint that brings a template."""
    config = {"chat_template": OWN, "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def _says(template: PromptTemplate) -> str:
    return template.render(to_messages("hi"), SpelledTokens([], []))


@pytest.mark.parametrize(
    ("model_path", "name"),
    [
        ("liuhaotian/llava-v1.6-vicuna-7b", "llava-v1"),
        ("liuhaotian/llava-v1.5-13b", "llava-v1"),
        ("llava-hf/llava-1.5-7b-hf", "llava-v1"),
        ("/models/LLaVA-V1.6-Vicuna-7B/", "llava-v1"),
        ("liuhaotian/llava-v1.6-mistral-7b", "mistral"),
        ("liuhaotian/llava-v1.6-34b", "llava-chatml"),
        ("lmsys/vicuna-7b-v1.5", "vicuna"),
        ("vicuna", "vicuna"),
        ("llava-hf/llava-interleave-qwen-7b-hf", None),
        ("/home/vicuna/llava-v1/checkpoint", None),
        ("OpenGVLab/InternVL2-8B", None),
        ("", None),
    ],
)
def test_template_goes_by_the_models_name(model_path: str, name: str | None) -> None:
    assert template_name(model_path) == name


def test_checkpoints_own_template_is_used_whatever_its_name(folder: Path) -> None:
    for model_path in (None, "liuhaotian/llava-v1.6-vicuna-7b"):
        template = choose_template(folder, PLACEMENT, model_path=model_path)
        assert _says(template) == "own: hi<s>"
        assert template.stop_words == ()


def test_checkpoint_without_a_template_gets_the_one_of_its_name(tmp_path: Path) -> None:
    template = choose_template(tmp_path, PLACEMENT, model_path="lmsys/vicuna-7b")
    assert _says(template).endswith(" USER: hi ASSISTANT:")
    folder = tmp_path / "llava-v1.5-7b"
    folder.mkdir()
    assert "curious human" in _says(choose_template(folder, PLACEMENT))


def test_checkpoint_without_template_and_known_name_cannot_be_prompted(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(ModelError, match="no chat template.* ChatTemplateConfig"):
        choose_template(folder, PLACEMENT)


def test_broken_template_is_not_passed_over_for_the_models_name(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ModelError):
        choose_template(tmp_path, PLACEMENT, model_path="lmsys/vicuna-7b")


def test_named_template_wins_over_the_checkpoints_own(folder: Path) -> None:
    template = choose_template(
        folder, PLACEMENT, ChatTemplateConfig("vicuna"), model_path="liuhaotian/llava-v1.6-7b"
    )
    assert "curious user" in _says(template)
    assert template.stop_words == ("</s>",)


def test_template_named_hf_is_the_checkpoints_own(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert _says(choose_template(folder, PLACEMENT, ChatTemplateConfig("hf"))) == "own: hi<s>"
    assert not caplog.records
    config = ChatTemplateConfig("hf", user="U", eoh="")
    assert _says(choose_template(folder, PLACEMENT, config)) == "own: hi<s>"
    assert "user, eoh: no effect" in caplog.text


def test_template_named_hf_may_come_from_another_folder(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "llava-v1"
    other.mkdir()
    config = ChatTemplateConfig("hf", model_path=str(folder))
    assert _says(choose_template(other, PLACEMENT, config)) == "own: hi<s>"
    with pytest.raises(ModelError, match=str(other)):
        choose_template(other, PLACEMENT, ChatTemplateConfig("hf"))


@pytest.mark.parametrize(
    "piece",
    [f.name for f in fields(TemplatePieces) if f.name not in ("stop_words", "strips_blank")],
)
def test_piece_that_is_given_replaces_the_templates(piece: str, folder: Path) -> None:
    messages = to_messages(
        [
            {"role": "user", "content": "q1"},
            {"role": "assistant", "content": "a1"},
            {"role": "tool", "content": "t1"},
            {"role": "user", "content": "q2"},
        ]
    )

    def render(**pieces: str) -> str:
        config = ChatTemplateConfig("internvl2_5", **pieces)
        template = choose_template(folder, PLACEMENT, config)
        return template.render(messages, SpelledTokens([], []))

    assert "MARK" in render(**{piece: "MARK"})
    assert render(**{piece: ""}) == render(**{piece: "MARK"}).replace("MARK", "")
    assert render(**{piece: getattr(TEMPLATES["internvl2_5"], piece)}) == render()


def test_stop_words_that_are_given_replace_the_templates(folder: Path) -> None:
    for words in (["###", "STOP"], []):
        config = ChatTemplateConfig("vicuna", stop_words=words)
        assert choose_template(folder, PLACEMENT, config).stop_words == tuple(words)


def test_completion_puts_nothing_around_a_text(folder: Path) -> None:
    config = ChatTemplateConfig("vicuna", capability="completion")
    assert _says(choose_template(folder, PLACEMENT, config)) == "hi"


def test_unknown_name_is_the_base_template_and_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = ChatTemplateConfig("robot", user="U ", eoh=" /U")
    with caplog.at_level(logging.WARNING):
        assert _says(choose_template(folder, PLACEMENT, config)) == "U hi /U"
    assert "'robot'" in caplog.text
    assert "vicuna" in caplog.text


def test_config_that_was_changed_is_checked_again(folder: Path) -> None:
    config = ChatTemplateConfig("vicuna")
    config.meta_instruction = "Be kind."
    assert _says(choose_template(folder, PLACEMENT, config)) == "Be kind. USER: hi ASSISTANT:"
    config.meta_instruction = 5  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="meta_instruction"):
        choose_template(folder, PLACEMENT, config)
