"""The original InternVL is prompted as its authors do, and answers as transformers then does."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from transformers import GotOcr2ImageProcessorPil, Qwen2Tokenizer

from tests.engine.inputs.pictures import noise
from tests.tiny_internvl import CONTEXT, ROWS, SIDE, make_internvl
from tests.tiny_internvl_original import save_original
from tests.tiny_tokenizers import QWEN2_TOKENS, write_internlm2, write_qwen2_bpe
from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig
from vlmflow_engine.errors import ModelError
from vlmflow_engine.inputs.builder import InputBuilder, PreparedInput
from vlmflow_engine.inputs.prompts import PromptOptions
from vlmflow_engine.inputs.template_config import ChatTemplateConfig
from vlmflow_engine.models.registry import image_format, read_config
from vlmflow_engine.vl.constants import IMAGE_TOKEN
from vlmflow_engine.vl.fetch import fetch_image

INTERNVL2 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
    "是一个有用无害的人工智能助手。"
)
INTERNVL2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位"
    "联合开发的多模态大语言模型。"
)
PHI3_TOKENS = (*QWEN2_TOKENS, "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

# Of each language model: the template's name, what a turn of a role begins with, what it ends
# with, and the authors' system text.
PROMPTS = {
    "internlm2": ("internlm2-chat", "<|im_start|>{}\n", "<|im_end|>", INTERNVL2),
    "qwen2": ("Hermes-2", "<|im_start|>{}\n", "<|im_end|>", INTERNVL2),
    "qwen3": ("internvl2_5", "<|im_start|>{}\n", "<|im_end|>\n", INTERNVL2_5),
    "phi3": ("phi3-chat", "<|{}|>\n", "<|end|>", INTERNVL2),
}
# A place in this text is an image's, with its newline if the engine chose the place.
IMAGES = [noise(100, 61), noise(56, 56), noise(400, 20)]

Encode = Callable[[str], list[int]]


def _part(image: Any) -> dict[str, Any]:
    return {"type": "image", "image": image}


def _user(*content: Any) -> dict[str, Any]:
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else _part(part) for part in content
    ]
    return {"role": "user", "content": parts}


# What is asked, and the authors' messages to it, where "<image>" stands for the next image.
CONVERSATIONS: list[tuple[Any, list[tuple[str, str]], int]] = [
    ("What is red?", [("user", "What is red?")], 0),
    (("the left", IMAGES[0]), [("user", "<image>\nthe left")], 1),
    (
        [_user("between", *IMAGES, "and right")],
        [("user", "<image>\n<image>\n<image>\nbetween\nand right")],
        3,
    ),
    (
        (f"one: {IMAGE_TOKEN}\ntwo: {IMAGE_TOKEN}\nwhich?", IMAGES[:2]),
        [("user", "one: <image>\ntwo: <image>\nwhich?")],
        2,
    ),
    (
        [
            {"role": "system", "content": "Be polite."},
            _user(IMAGES[0], "how many"),
            {"role": "assistant", "content": "two"},
            _user(IMAGES[1], "and here"),
        ],
        [
            ("system", "Be polite."),
            ("user", "<image>\nhow many"),
            ("assistant", "two"),
            ("user", "<image>\nand here"),
        ],
        2,
    ),
]


@pytest.fixture(scope="module", params=PROMPTS)
def checkpoint(request, tmp_path_factory) -> tuple[str, Path, Any, Encode]:
    """Language model, folder, transformers' model of the same numbers, the authors' tokenizer."""
    text = request.param
    folder = tmp_path_factory.mktemp(text)
    if text == "internlm2":
        ids, encode = write_internlm2(folder), _sentencepiece(folder)
    else:
        tokens = PHI3_TOKENS if text == "phi3" else QWEN2_TOKENS
        ids = write_qwen2_bpe(folder, extra_tokens=tokens)
        tokenizer = Qwen2Tokenizer.from_pretrained(folder)
        encode = lambda prompt: tokenizer(prompt)["input_ids"]  # noqa: E731
    model = make_internvl(text, image_token_id=ids[CONTEXT])
    end = ids["<|end|>" if text == "phi3" else "<|im_end|>"]
    with torch.no_grad():  # answers come to an end, most of them
        model.lm_head.weight[end] *= 3
    save_original(folder, model, text, "300m", template=PROMPTS[text][0])
    return text, folder, model, encode


@pytest.mark.parametrize("number", range(len(CONVERSATIONS)))
def test_prompts_ids_and_tiles_are_the_authors(number, checkpoint):
    text, folder, _, encode = checkpoint
    prompt, messages, num_images = CONVERSATIONS[number]
    images = _images(prompt)
    assert len(images) == num_images
    prepared = _builder(folder).build(prompt)
    tiles = [_tiles(image) for image in images]
    assert list(prepared.token_ids) == encode(_authors_prompt(text, messages, tiles))
    context = encode(CONTEXT)[-1]
    for image, expected in zip(prepared.images, tiles, strict=True):
        np.testing.assert_array_equal(image.pixels, expected)
        assert image.num_tokens == len(expected) * ROWS
        rows = prepared.token_ids[image.offset : image.offset + image.num_tokens]
        assert set(rows) == {context}


def test_answers_are_those_of_transformers_to_the_authors_prompts(checkpoint):
    text, folder, model, encode = checkpoint
    prompts = [prompt for prompt, _, _ in CONVERSATIONS]
    config = PytorchEngineConfig(dtype="float32", device_type="cpu", max_prefill_token_num=32)
    with Pipeline(str(folder), backend_config=config) as pipeline:
        responses = pipeline(prompts, GenerationConfig(max_new_tokens=24))
    ends = [encode(token)[-1] for token in ("<|im_end|>", "<|im_start|>", "<|endoftext|>")]
    ends += [encode(token)[-1] for token in ("<|end|>", "<|assistant|>") if text == "phi3"]
    ends = [2, *(ends if text != "internlm2" else ends[:2])]
    reasons = set()
    for (prompt, messages, _), response in zip(CONVERSATIONS, responses, strict=True):
        tiles = [_tiles(image) for image in _images(prompt)]
        ids = torch.tensor([encode(_authors_prompt(text, messages, tiles))])
        pixels = {"pixel_values": _normalised(np.concatenate(tiles))} if tiles else {}
        output = model.generate(
            input_ids=ids, **pixels, max_new_tokens=24, do_sample=False, eos_token_id=ends
        )
        expected = output[0, ids.shape[1] :].tolist()
        is_ended = expected[-1] in ends
        assert response.finish_reason == ("stop" if is_ended else "length")
        assert list(response.token_ids) == (expected[:-1] if is_ended else expected)
        reasons.add(response.finish_reason)
    assert "stop" in reasons


def test_an_answer_ends_as_the_checkpoint_was_trained_to_whatever_the_template(checkpoint):
    text, folder, _, encode = checkpoint
    end = encode("<|end|>" if text == "phi3" else "<|im_end|>")[-1]
    config = PytorchEngineConfig(dtype="float32", device_type="cpu")
    template = ChatTemplateConfig("vicuna")
    with Pipeline(str(folder), backend_config=config, chat_template=template) as pipeline:
        questions = [f"{number} red {word}" for number in range(5) for word in ("square", "star")]
        responses = pipeline(questions, GenerationConfig(max_new_tokens=40))
        on = pipeline(questions, GenerationConfig(max_new_tokens=40, ignore_eos=True))
    stopped = [response for response in responses if response.finish_reason == "stop"]
    assert stopped
    assert all(end not in response.token_ids for response in responses)
    assert any(end in response.token_ids for response in on)


def test_tokens_that_a_user_spells_are_text(checkpoint):
    _, folder, _, encode = checkpoint
    prepared = _builder(folder).build((f"is {CONTEXT} or <img> in it", IMAGES[1]))
    specials = [encode(token)[-1] for token in ("<img>", CONTEXT, "</img>")]
    assert [prepared.token_ids.count(token) for token in specials] == [1, ROWS, 1]


def test_a_text_without_a_template_holds_its_images_alone(checkpoint):
    _, folder, _, encode = checkpoint
    prompt = (f"one {IMAGE_TOKEN} two", IMAGES[1])
    prepared = _builder(folder).build(prompt, PromptOptions(do_preprocess=False))
    assert list(prepared.token_ids) == encode(f"one <img>{CONTEXT * ROWS}</img> two")


def test_without_its_eyes_it_is_prompted_as_before(tmp_path):
    folder = _save(tmp_path)
    config = PytorchEngineConfig(dtype="float32", device_type="cpu")
    blind = PytorchEngineConfig(dtype="float32", device_type="cpu", language_model_only=True)
    answers = []
    for backend in (config, blind):
        with Pipeline(str(folder), backend_config=backend) as pipeline:
            answers.append(pipeline("What is red?", GenerationConfig(max_new_tokens=8)))
            seen = pipeline([("What is red?", IMAGES[0])])[0]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].input_token_len == answers[1].input_token_len
    assert "takes text alone" in seen.error_message


def test_a_system_message_of_the_config_stands_in_the_template(tmp_path):
    folder = _save(tmp_path, template="internvl2_5", system_message="You see.")
    assert _text(folder, "Hi").startswith("<|im_start|>system\nYou see.<|im_end|>\n<|im_start|>u")


def test_without_a_template_in_the_config_the_tokenizers_own_counts(tmp_path):
    folder = _save(tmp_path, template=None)
    with pytest.raises(ModelError, match="no chat template"):
        _builder(folder)
    own = "{% for message in messages %}{{ '[' + message['content'] + ']' }}{% endfor %}"
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": own}))
    prepared = _builder(folder).build(("Hi", IMAGES[1]))
    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    expected = f"[<img>{CONTEXT * ROWS}</img>\nHi]"
    assert list(prepared.token_ids) == tokenizer(expected)["input_ids"]


def test_a_template_that_the_caller_names_wins(tmp_path):
    folder = _save(tmp_path, template="Hermes-2")
    config = ChatTemplateConfig("internvl2_5", meta_instruction="A")
    text = _text(folder, "Hi", chat_template_config=config)
    assert text == "<|im_start|>system\nA<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n" + (
        "<|im_start|>assistant\n"
    )


def test_a_tokenizer_without_the_image_tokens_is_named(tmp_path):
    folder = _save(tmp_path, extra_tokens=QWEN2_TOKENS[:3])
    with pytest.raises(ModelError, match=f"{folder}: the tokenizer has no token '{CONTEXT}'"):
        _builder(folder)
    folder = _save(tmp_path, extra_tokens=(*QWEN2_TOKENS[:4], CONTEXT))
    with pytest.raises(ModelError, match=f"{folder}: the tokenizer has no token '</img>'"):
        _builder(folder)


def _save(folder: Path, *, extra_tokens: Any = QWEN2_TOKENS, **fields: Any) -> Path:
    write_qwen2_bpe(folder, extra_tokens=extra_tokens)
    return save_original(folder, make_internvl(), "qwen2", "300m", **fields)


def _builder(folder: Path, **options: Any) -> InputBuilder:
    form = image_format(read_config(folder))
    return InputBuilder(folder, form, fetch_image, max_image_pixels=1 << 24, **options)


def _text(folder: Path, prompt: Any, **options: Any) -> str:
    builder = _builder(folder, **options)
    prepared: PreparedInput = builder.build(prompt)
    return builder.tokenizer.decode(list(prepared.token_ids), skip_special_tokens=False)


def _images(prompt: Any) -> list[Any]:
    if isinstance(prompt, tuple):
        return prompt[1] if isinstance(prompt[1], list) else [prompt[1]]
    if isinstance(prompt, str):
        return []
    parts = [part for message in prompt for part in message["content"] if isinstance(part, dict)]
    return [part["image"] for part in parts if part["type"] == "image"]


def _tiles(image: Any) -> Any:
    """As transformers cuts it, before it is normalised."""
    processor = GotOcr2ImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, crop_to_patches=True, max_patches=12
    )
    tiles = processor.preprocess(image, do_rescale=False, do_normalize=False)["pixel_values"]
    return np.moveaxis(np.stack(tiles), 1, -1)


def _normalised(tiles: Any) -> torch.Tensor:
    pixels = torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    return (pixels - mean) / std


def _authors_prompt(text: str, messages: list[tuple[str, str]], tiles: list[Any]) -> str:
    """What the authors' `chat` makes of a conversation whose images have these tiles."""
    _, begin, end, system = PROMPTS[text]
    if messages[0][0] != "system":
        messages = [("system", system), *messages]
    prompt = "".join(begin.format(role) + content + end for role, content in messages)
    prompt += begin.format("assistant")
    for image in tiles:
        placeholders = f"<img>{CONTEXT * (ROWS * len(image))}</img>"
        prompt = prompt.replace("<image>", placeholders, 1)
    return prompt


def _sentencepiece(folder: Path) -> Encode:
    """InternLM2's tokenizer: special tokens first, each text between them by itself."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ids = json.loads((folder / "added_tokens.json").read_text())
    pattern = re.compile("(" + "|".join(map(re.escape, ids)) + ")")

    def encode(prompt: str) -> list[int]:
        chunks = [chunk for chunk in pattern.split(prompt) if chunk]
        return [1] + [
            token
            for chunk in chunks
            for token in ([ids[chunk]] if chunk in ids else model.encode(chunk))
        ]

    return encode
