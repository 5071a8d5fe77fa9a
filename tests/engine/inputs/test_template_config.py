"""A chat template's config survives JSON, and says what is wrong with it."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlmflow_engine.errors import ConfigError
from vlmflow_engine.inputs.template_config import ChatTemplateConfig

FULL = ChatTemplateConfig(
    "vicuna",
    model_path="a/b",
    system="S ",
    meta_instruction="你好",
    eosys="\n",
    user="U ",
    eoh=" /U",
    assistant="A ",
    eoa="</s>",
    tool="T ",
    eotool=" /T",
    separator="|",
    capability="chat",
    stop_words=["</s>", "###"],
)


@pytest.mark.parametrize("config", [ChatTemplateConfig("vicuna"), FULL])
def test_config_survives_json_as_text_and_as_file(
    config: ChatTemplateConfig, tmp_path: Path
) -> None:
    path = tmp_path / "template.json"
    text = config.to_json(path)
    assert path.read_text(encoding="utf-8") == text == config.to_json()
    for source in (text, f"\n {text}", path, str(path)):
        assert ChatTemplateConfig.from_json(source) == config


def test_json_of_lmdeploy_is_read() -> None:
    text = '{"model_name": "mine", "meta_instruction": "你好", "stop_words": ["<|im_end|>"]}'
    assert ChatTemplateConfig.from_json(text) == ChatTemplateConfig(
        "mine", meta_instruction="你好", stop_words=["<|im_end|>"]
    )
    assert "你好" in ChatTemplateConfig.from_json(text).to_json()


def test_json_without_a_name_is_a_base_template() -> None:
    assert ChatTemplateConfig.from_json('{"user": "U "}') == ChatTemplateConfig("base", user="U ")


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"model_name": ""}, "model_name"),
        ({"model_name": None}, "model_name"),
        ({"capability": "voice"}, "capability .*voice"),
        ({"user": 5}, "user .* 5"),
        ({"model_path": Path("a")}, "model_path"),
        ({"stop_words": "</s>"}, "stop_words"),
        ({"stop_words": [5]}, "stop_words"),
        ({"stop_words": [""]}, "stop_words"),
    ],
)
def test_wrong_value_is_refused_and_named(fields: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        ChatTemplateConfig(**{"model_name": "vicuna"} | fields)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "JSON"),
        ("no/such/file.json", "no/such/file.json"),
        ("a\0b", "a"),
        ('{"model": "vicuna"}', "model_name.*got .'model'"),
        ('{"model_name": 5}', "5"),
    ],
)
def test_what_is_no_config_is_refused(text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        ChatTemplateConfig.from_json(text)


def test_file_that_holds_no_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "template.json"
    path.write_text(json.dumps(["vicuna"]))
    with pytest.raises(ConfigError, match="JSON object"):
        ChatTemplateConfig.from_json(path)
