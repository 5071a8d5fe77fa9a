"""Built-in templates render the very strings that LMDeploy and the models' authors use."""

from dataclasses import replace

import pytest

from vlmflow_engine.errors import UnsupportedFeatureError
from vlmflow_engine.inputs.builtin_templates import TEMPLATES, BuiltinTemplate, TemplatePieces
from vlmflow_engine.inputs.placement import ImagePlacement, PlacementRule
from vlmflow_engine.inputs.prompts import ImagePart, Message, PromptOptions, TextPart, to_messages
from vlmflow_engine.inputs.spelled_tokens import SpelledTokens

PLACEMENT = ImagePlacement("<image>")

SYSTEM = Message("system", (TextPart("Be brief."),))
ONE = [Message("user", (TextPart("q1"),))]
TWO = [*ONE, Message("assistant", (TextPart("a1"),)), Message("user", (TextPart("q2"),))]
PREFIX = [*TWO, Message("assistant", (TextPart("It is "),))]

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. "
)
LLAVA = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions. "
)
LLAMA2 = (
    "[INST] <<SYS>>\nYou are a helpful, respectful and honest assistant. Always answer as "
    "helpfully as possible, while being safe. Your answers should not include any harmful, "
    "unethical, racist, sexist, toxic, dangerous, or illegal content. Please ensure that your "
    "responses are socially unbiased and positive in nature.\n\nIf a question does not make any "
    "sense, or is not factually coherent, explain why instead of answering something not correct. "
    "If you don't know the answer to a question, please don't share false information."
    "\n<</SYS>>\n\n"
)
INTERNVL2 = (
    "<|im_start|>system\n你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，"
    "英文名叫InternVL, 是一个有用无害的人工智能助手。<|im_end|>"
)
INTERNVL2_5 = (
    "<|im_start|>system\n你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位"
    "联合开发的多模态大语言模型。<|im_end|>\n"
)

# Of each template: its own system text, one given by the caller, then what follows in one turn, in
# two, and in two with the beginning of an answer.
RENDERED = {
    "base": ("", "Be brief.", "q1", "q1a1q2", "q1a1q2It is "),
    **{
        name: (
            system,
            "Be brief. ",
            "USER: q1 ASSISTANT:",
            "USER: q1 ASSISTANT: a1</s>USER: q2 ASSISTANT:",
            "USER: q1 ASSISTANT: a1</s>USER: q2 ASSISTANT: It is ",
        )
        for name, system in {"vicuna": VICUNA, "wizardlm": VICUNA, "llava-v1": LLAVA}.items()
    },
    **{
        name: (
            "",
            "Be brief.",
            "[INST] q1 [/INST]",
            "[INST] q1 [/INST]a1</s>[INST] q2 [/INST]",
            "[INST] q1 [/INST]a1</s>[INST] q2 [/INST]It is ",
        )
        for name in ("mistral", "mixtral")
    },
    "llama2": (
        LLAMA2,
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n",
        "q1 [/INST] ",
        "q1 [/INST] a1</s><s>[INST] q2 [/INST] ",
        "q1 [/INST] a1</s><s>[INST] q2 [/INST] It is ",
    ),
    **{
        name: (
            system,
            "<|im_start|>system\nBe brief.<|im_end|>",
            "<|im_start|>user\nq1<|im_end|><|im_start|>assistant\n",
            "<|im_start|>user\nq1<|im_end|><|im_start|>assistant\na1<|im_end|>"
            "<|im_start|>user\nq2<|im_end|><|im_start|>assistant\n",
            "<|im_start|>user\nq1<|im_end|><|im_start|>assistant\na1<|im_end|>"
            "<|im_start|>user\nq2<|im_end|><|im_start|>assistant\nIt is ",
        )
        for name, system in {
            "llava-chatml": "<|im_start|>system\nAnswer the questions.<|im_end|>",
            "internvl-zh-hermes2": "<|im_start|>system\nAnswer the questions.<|im_end|>",
            "internvl2-internlm2": INTERNVL2,
        }.items()
    },
    **{
        name: (
            system,
            "<|im_start|>system\nBe brief.<|im_end|>\n",
            "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n",
            "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
            "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n",
            "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
            "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\nIt is ",
        )
        for name, system in {
            "internvl2_5": INTERNVL2_5,
            "internvl-internlm2": (
                "<|im_start|>system\nYou are an AI assistant whose name is InternLM (书生·浦语)."
                "<|im_end|>\n"
            ),
        }.items()
    },
    **{
        name: (
            f"<|system|>\n{system}<|end|>",
            "<|system|>\nBe brief.<|end|>",
            "<|user|>\nq1<|end|><|assistant|>\n",
            "<|user|>\nq1<|end|><|assistant|>\na1<|end|><|user|>\nq2<|end|><|assistant|>\n",
            "<|user|>\nq1<|end|><|assistant|>\na1<|end|><|user|>\nq2<|end|><|assistant|>\nIt is ",
        )
        for name, system in {
            "internvl-phi3": "You are an AI assistant whose name is Phi-3.",
            "internvl2-phi3": INTERNVL2.removeprefix("<|im_start|>system\n").removesuffix(
                "<|im_end|>"
            ),
        }.items()
    },
}


def _render(
    name: str,
    messages: list[Message],
    placement: ImagePlacement = PLACEMENT,
    **options: bool | None,
) -> str:
    template = BuiltinTemplate(name, TEMPLATES[name], placement)
    return template.render(messages, SpelledTokens([], []), PromptOptions(**options))


@pytest.mark.parametrize("name", TEMPLATES)
def test_conversation_reads_as_the_model_was_trained(name: str) -> None:
    own, given, one, two, prefix = RENDERED[name]
    for messages, text in [(ONE, one), (TWO, two), (PREFIX, prefix)]:
        assert _render(name, messages) == own + text
        assert _render(name, [SYSTEM, *messages]) == given + text


def test_every_template_has_an_expected_text() -> None:
    assert RENDERED.keys() == TEMPLATES.keys()


@pytest.mark.parametrize(
    ("name", "stop_words"),
    [
        ("base", ()),
        ("vicuna", ("</s>",)),
        ("llava-v1", ("</s>",)),
        ("llava-chatml", ("<|im_end|>",)),
        ("internvl2-internlm2", ("<|im_start|>", "<|im_end|>")),
        ("internvl2_5", ("<|im_end|>", "<|action_end|>")),
        ("internvl-phi3", ("<|end|>", "<|endoftext|>", "<|assistant|>")),
        ("internvl2-phi3", ("<|end|>", "<|endoftext|>", "<|assistant|>")),
    ],
)
def test_template_tells_its_stop_words(name: str, stop_words: tuple[str, ...]) -> None:
    assert BuiltinTemplate(name, TEMPLATES[name], PLACEMENT).stop_words == stop_words


def test_each_system_message_stands_where_it_was_given() -> None:
    later = Message("system", (TextPart("Now in French."),))
    assert _render("internvl2_5", [SYSTEM, SYSTEM, *TWO, later]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        * 2
        + "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>system\nNow in French.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert _render("vicuna", [*ONE, later]).startswith(VICUNA)


def test_result_of_a_tool_stands_between_its_pieces() -> None:
    result = Message("tool", (TextPart("5"),))
    assert _render("internvl2_5", [*ONE, result]) == (
        f"{INTERNVL2_5}<|im_start|>user\nq1<|im_end|>\n<|im_start|>environment\n5<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("add_prompt", "messages", "end"),
    [
        (None, ONE, "USER: q1 ASSISTANT:"),
        (True, ONE, "USER: q1 ASSISTANT:"),
        (False, ONE, "USER: q1 "),
        (None, TWO[:2], "USER: q1 ASSISTANT: a1"),
        (True, TWO[:2], "USER: q1 ASSISTANT: a1</s>ASSISTANT:"),
        (False, TWO[:2], "USER: q1 ASSISTANT: a1</s>"),
    ],
)
def test_prompt_for_an_answer_is_added_as_asked(
    add_prompt: bool | None, messages: list[Message], end: str
) -> None:
    assert _render("vicuna", messages, add_generation_prompt=add_prompt) == VICUNA + end


def test_images_stand_before_the_first_text_of_their_message() -> None:
    image = ImagePart(b"")
    messages = [
        Message("user", (TextPart("Which"), image, image, TextPart("is wider?"))),
        Message("assistant", (TextPart("The first."),)),
        Message("user", (image, TextPart("And this?"))),
    ]
    assert _render("vicuna", messages) == (
        f"{VICUNA}USER: <image>\n<image>\nWhich\nis wider? ASSISTANT: The first.</s>"
        "USER: <image>\nAnd this? ASSISTANT:"
    )


def test_images_stand_in_the_order_of_the_parts_where_the_family_wants_it() -> None:
    image = ImagePart(b"")
    parts = (TextPart("Describe the following images in detail"), image, image)
    message = Message("user", (*parts, TextPart("How many cats are there in total?")))
    placement = ImagePlacement(
        "<IMG_CONTEXT>", PlacementRule.ITEM_ORDER, before="<img>", after="</img>"
    )
    assert _render("internvl2_5", [message], placement) == (
        f"{INTERNVL2_5}<|im_start|>user\nDescribe the following images in detail"
        "<img><IMG_CONTEXT></img>\n<img><IMG_CONTEXT></img>\nHow many cats are there in total?"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


def test_completion_is_the_text_as_it_is() -> None:
    template = BuiltinTemplate("vicuna", TEMPLATES["vicuna"], PLACEMENT, is_completion=True)
    nothing = SpelledTokens([], [])
    assert template.render(to_messages("Once upon a "), nothing) == "Once upon a "
    assert template.render(to_messages(("It shows", b"")), nothing) == "<image>\nIt shows"
    assert template.render(TWO, nothing) == _render("vicuna", TWO)
    assert template.render([SYSTEM], nothing) == "Be brief. ASSISTANT:"


def test_only_the_blank_of_the_prompt_for_an_answer_is_stripped() -> None:
    pieces = replace(TEMPLATES["vicuna"], assistant="BOT:")
    template = BuiltinTemplate("vicuna", pieces, PLACEMENT)
    assert template.render(ONE, SpelledTokens([], [])) == f"{VICUNA}USER: q1 BOT:"
    assert TemplatePieces(assistant="A ").strips_blank is False


def test_tools_are_refused_where_no_piece_has_a_place_for_them() -> None:
    template = BuiltinTemplate("vicuna", TEMPLATES["vicuna"], PLACEMENT)
    options = PromptOptions(tools=[{"type": "function"}])
    with pytest.raises(UnsupportedFeatureError, match="'vicuna'"):
        template.render(ONE, SpelledTokens([], []), options)
    assert template.render(ONE, SpelledTokens([], []), PromptOptions(tools=[]))
