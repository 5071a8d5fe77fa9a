"""Chat templates by name: what a prompt reads like to the model, to the letter.

No token of the tests' tokenizer but </s> is special, so the others are plain text on both sides.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.compat.fingerprint import is_same, reads_as
from tests.engine.inputs.pictures import noise
from vlmflow_engine import (
    ChatTemplateConfig,
    GenerationConfig,
    Pipeline,
    PytorchEngineConfig,
    pipeline,
)
from vlmflow_engine.errors import ModelError
from vlmflow_engine.vl.constants import IMAGE_TOKEN

SHORT = GenerationConfig(max_new_tokens=4)
IMAGE = noise(96, 96, seed=10)
ENGINE = PytorchEngineConfig(dtype="float32", device_type="cpu", num_preprocess_workers=0)

Open = Callable[[ChatTemplateConfig], Pipeline]

CURIOUS = (
    "A chat between a curious {0} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {0}'s questions. "
)
ONE = [{"role": "user", "content": "q1"}]
TWO = [*ONE, {"role": "assistant", "content": "a1"}, {"role": "user", "content": "q2"}]
SYSTEM = {"role": "system", "content": "Be brief."}

# Template -> its own system text, one that is given, one turn, two turns.
TEXTS: dict[str, tuple[str, str, str, str]] = {
    "vicuna": (
        CURIOUS.format("user"),
        "Be brief. ",
        "USER: q1 ASSISTANT:",
        "USER: q1 ASSISTANT: a1</s>USER: q2 ASSISTANT:",
    ),
    "llava-v1": (
        CURIOUS.format("human"),
        "Be brief. ",
        "USER: q1 ASSISTANT:",
        "USER: q1 ASSISTANT: a1</s>USER: q2 ASSISTANT:",
    ),
    "mistral": (
        "",
        "Be brief.",
        "[INST] q1 [/INST]",
        "[INST] q1 [/INST]a1</s>[INST] q2 [/INST]",
    ),
    "llava-chatml": (
        "<|im_start|>system\nAnswer the questions.<|im_end|>",
        "<|im_start|>system\nBe brief.<|im_end|>",
        "<|im_start|>user\nq1<|im_end|><|im_start|>assistant\n",
        "<|im_start|>user\nq1<|im_end|><|im_start|>assistant\na1<|im_end|>"
        "<|im_start|>user\nq2<|im_end|><|im_start|>assistant\n",
    ),
    "internvl2-internlm2": (
        "<|im_start|>system\n你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，"
        "英文名叫InternVL, 是一个有用无害的人工智能助手。<|im_end|>",
        "<|im_start|>system\nBe brief.<|im_end|>",
        "<|im_start|>user\nq1<|im_end|><|im_start|>assistant\n",
        "<|im_start|>user\nq1<|im_end|><|im_start|>assistant\na1<|im_end|>"
        "<|im_start|>user\nq2<|im_end|><|im_start|>assistant\n",
    ),
    "internvl2_5": (
        "<|im_start|>system\n你是书生·万象，英文名是InternVL，是由上海人工智能实验室、"
        "清华大学及多家合作单位联合开发的多模态大语言模型。<|im_end|>\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n",
        "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n",
    ),
    "internvl-internlm2": (
        "<|im_start|>system\nYou are an AI assistant whose name is InternLM (书生·浦语)."
        "<|im_end|>\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n",
        "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n",
    ),
    "base": ("", "Be brief.", "q1", "q1a1q2"),
}


@pytest.fixture(scope="module")
def open_with(tiny_llava: Path) -> Iterator[Open]:
    """A pipeline with a chat template; one for each that is asked for."""
    opened: dict[str, Pipeline] = {}

    def open_pipeline(config: ChatTemplateConfig) -> Pipeline:
        key = config.to_json()
        if key not in opened:
            opened[key] = pipeline(
                str(tiny_llava), backend_config=ENGINE, chat_template_config=config
            )
        return opened[key]

    yield open_pipeline
    for pipe in opened.values():
        pipe.close()


@pytest.mark.parametrize("name", TEXTS)
def test_a_turn_reads_as_the_template_has_it(name: str, open_with: Open) -> None:
    own, given, one, _ = TEXTS[name]
    pipe = open_with(ChatTemplateConfig(model_name=name))
    assert reads_as(pipe, "q1", own + one)
    assert reads_as(pipe, [SYSTEM, *ONE], given + one)


@pytest.mark.parametrize("name", TEXTS)
def test_a_second_turn_reads_as_the_template_has_it(name: str, open_with: Open) -> None:
    own, _, _, two = TEXTS[name]
    pipe = open_with(ChatTemplateConfig(model_name=name))
    assert reads_as(pipe, TWO, own + two)
    session = pipe.session()
    session.history = [("q1", "a1")]
    assert pipe.chat("q2", session, SHORT).response.text == pipe(TWO, SHORT).text


@pytest.mark.parametrize("name", TEXTS)
def test_an_image_reads_as_a_line_before_its_text(name: str, open_with: Open) -> None:
    own, _, one, _ = TEXTS[name]
    pipe = open_with(ChatTemplateConfig(model_name=name))
    written = own + one.replace("q1", f"{IMAGE_TOKEN}\nq1")
    assert reads_as(pipe, ("q1", IMAGE), written, IMAGE)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("vicuna", "USER: q1 ASSISTANT: It is"),
        ("llava-chatml", "user\nq1<|im_end|><|im_start|>assistant\nIt is"),
    ],
)
def test_an_answer_that_has_begun_is_not_ended(name: str, end: str, open_with: Open) -> None:
    own = TEXTS[name][0]
    pipe = open_with(ChatTemplateConfig(model_name=name))
    prompt = [*ONE, {"role": "assistant", "content": "It is"}]
    before = "" if name == "vicuna" else "<|im_start|>"
    assert reads_as(pipe, prompt, own + before + end)


@pytest.mark.parametrize(
    ("pieces", "written"),
    [
        ({"meta_instruction": "Be kind."}, "Be kind. USER: q1 ASSISTANT:"),
        ({"meta_instruction": "", "eosys": ""}, "USER: q1 ASSISTANT:"),
        ({"system": "S:", "meta_instruction": "x", "eosys": "|"}, "S:x|USER: q1 ASSISTANT:"),
        ({"meta_instruction": "x", "user": "Q: ", "eoh": "\n"}, "x Q: q1\nASSISTANT:"),
        ({"meta_instruction": "x", "assistant": "A>"}, "x USER: q1 A>"),
    ],
)
def test_pieces_that_are_given_replace_the_templates(
    pieces: dict[str, Any], written: str, open_with: Open
) -> None:
    assert reads_as(open_with(ChatTemplateConfig("vicuna", **pieces)), "q1", written)


def test_pieces_between_turns_may_be_given_too(open_with: Open) -> None:
    pieces = {"meta_instruction": "", "eosys": "", "eoa": "#", "separator": "|"}
    pipe = open_with(ChatTemplateConfig("vicuna", **pieces))
    assert reads_as(pipe, TWO, "USER: q1 ASSISTANT: a1#|USER: q2 ASSISTANT:")


def test_a_template_that_nobody_knows_is_made_of_its_pieces(
    open_with: Open, caplog: pytest.LogCaptureFixture
) -> None:
    config = ChatTemplateConfig("my-own", user="Q: ", eoh="\n", assistant="A: ")
    pipe = open_with(config)
    assert reads_as(pipe, "q1", "Q: q1\nA: ")
    assert "my-own" in caplog.text


def test_a_template_may_come_from_a_file(open_with: Open, tmp_path: Path) -> None:
    path = tmp_path / "template.json"
    path.write_text('{"model_name": "base", "user": "[", "eoh": "]"}', encoding="utf-8")
    assert reads_as(open_with(ChatTemplateConfig.from_json(str(path))), "q1", "[q1]")


def test_completion_leaves_a_text_as_it_is(open_with: Open) -> None:
    assert reads_as(open_with(ChatTemplateConfig("vicuna", capability="completion")), "q1", "q1")


def test_a_templates_stop_words_end_an_answer(open_with: Open, pipe: Pipeline) -> None:
    pieces = {"user": "USER: ", "eoh": " ", "assistant": "ASSISTANT:"}
    config = GenerationConfig(max_new_tokens=30)
    free = open_with(ChatTemplateConfig("base", **pieces))("red", config)
    word = free.text[4:7]
    stopped = open_with(ChatTemplateConfig("base", **pieces, stop_words=[word]))("red", config)
    assert stopped.text == free.text[: free.text.index(word)]
    assert stopped.finish_reason == "stop" and free.text == pipe("red", config).text


def test_the_checkpoints_own_template_has_a_name(open_with: Open, pipe: Pipeline) -> None:
    own = open_with(ChatTemplateConfig("hf"))
    assert own(("q1", IMAGE), SHORT).token_ids == pipe(("q1", IMAGE), SHORT).token_ids
    assert reads_as(own, "q1", "USER: q1 ASSISTANT:")


def test_the_vicuna_template_is_another_prompt_than_the_default_one(open_with: Open) -> None:
    vicuna, llava = (open_with(ChatTemplateConfig(name)) for name in ("vicuna", "llava-v1"))
    one, other = TEXTS["vicuna"][0] + "USER: q1 ASSISTANT:", "USER: q1 ASSISTANT:"
    assert not is_same(vicuna, "q1", other, do_preprocess=False)
    assert reads_as(vicuna, "q1", one) and not reads_as(llava, "q1", one)


@pytest.mark.parametrize(
    ("folder", "own"),
    [
        ("llava-v1.6-vicuna-7b", CURIOUS.format("human") + "USER: q1 ASSISTANT:"),
        ("llava-1.5-7b", CURIOUS.format("human") + "USER: q1 ASSISTANT:"),
        ("vicuna-7b-v1.5", CURIOUS.format("user") + "USER: q1 ASSISTANT:"),
        ("llava-v1.6-mistral-7b", "[INST] q1 [/INST]"),
        (
            "llava-v1.6-34b",
            "<|im_start|>system\nAnswer the questions.<|im_end|>"
            "<|im_start|>user\nq1<|im_end|><|im_start|>assistant\n",
        ),
    ],
)
def test_without_a_template_the_models_name_decides(
    folder: str, own: str, tiny_llava: Path, tmp_path: Path
) -> None:
    with pipeline(str(without_template(tiny_llava, tmp_path / folder)), ENGINE) as pipe:
        assert reads_as(pipe, "q1", own)


def test_without_a_template_and_a_known_name_a_config_is_asked_for(
    tiny_llava: Path, tmp_path: Path
) -> None:
    folder = without_template(tiny_llava, tmp_path / "model")
    with pytest.raises(ModelError, match="ChatTemplateConfig"):
        pipeline(str(folder), ENGINE)
    with pipeline(str(folder), ENGINE, ChatTemplateConfig("mistral")) as pipe:
        assert reads_as(pipe, "q1", "[INST] q1 [/INST]")


def without_template(source: Path, folder: Path) -> Path:
    """A checkpoint under another name and without a chat template."""
    shutil.copytree(source, folder)
    for name in ("chat_template.jinja", "chat_template.json"):
        (folder / name).unlink(missing_ok=True)
    return folder
