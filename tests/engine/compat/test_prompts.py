"""Forms of prompts: what is the same prompt, where images stand, and the tokenizer by itself."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.engine.compat.fingerprint import is_same, reads_as
from tests.engine.inputs.pictures import encode, noise
from vlmflow_engine import GenerationConfig, Pipeline, Tokenizer
from vlmflow_engine.errors import ModelError
from vlmflow_engine.vl import encode_image_base64
from vlmflow_engine.vl.constants import IMAGE_TOKEN

SHORT = GenerationConfig(max_new_tokens=4)
IMAGE, OTHER = noise(96, 96, seed=8), noise(64, 80, seed=9)
URL = f"data:image/png;base64,{encode_image_base64(IMAGE)}"
PNG = encode(IMAGE, "PNG")


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def image(picture: Any) -> dict[str, Any]:
    return {"type": "image_data", "image_data": {"data": picture}}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("content", "same"),
    [
        ([text("a"), text("b")], "a\nb"),
        ([text("a"), text("b"), text("c")], "a\nb\nc"),
        ([text("a")], "a"),
        ([text("a\n"), text("")], "a\n\n"),
        (None, ""),
        ([], ""),
        ([text("")], ""),
    ],
)
def test_texts_of_a_message_are_one_text(content: Any, same: str, pipe: Pipeline) -> None:
    assert is_same(pipe, [user(content)], same)
    assert reads_as(pipe, [user(content)], f"USER: {same} ASSISTANT:")


def test_a_message_without_content_is_an_empty_text(pipe: Pipeline) -> None:
    assert is_same(pipe, [{"role": "user"}], "")


def test_a_text_is_one_turn_of_a_user(pipe: Pipeline) -> None:
    assert is_same(pipe, "how many", [user("how many")])
    assert reads_as(pipe, "how many", "USER: how many ASSISTANT:")


def test_an_image_stands_before_the_text_whichever_came_first(pipe: Pipeline) -> None:
    written = f"USER: {IMAGE_TOKEN}\nhow many ASSISTANT:"
    for prompt in (
        ("how many", IMAGE),
        (IMAGE, "how many"),
        ("how many", [IMAGE]),
        [user([image(IMAGE), text("how many")])],
        [user([text("how many"), image(IMAGE)])],
    ):
        assert reads_as(pipe, prompt, written, IMAGE)


def test_images_keep_their_order(pipe: Pipeline) -> None:
    written = f"USER: {IMAGE_TOKEN}\n{IMAGE_TOKEN}\nhow many ASSISTANT:"
    assert reads_as(pipe, ("how many", [IMAGE, OTHER]), written, IMAGE, OTHER)
    assert not is_same(pipe, ("how many", [IMAGE, OTHER]), ("how many", [OTHER, IMAGE]))


@pytest.mark.parametrize(
    "content",
    [
        f"look at {IMAGE_TOKEN} again",
        f"{IMAGE_TOKEN}",
        f"first {IMAGE_TOKEN}, then {IMAGE_TOKEN}",
        f"{IMAGE_TOKEN}{IMAGE_TOKEN} both",
    ],
)
def test_an_image_stands_where_its_user_wrote_it(content: str, pipe: Pipeline) -> None:
    images = [IMAGE, OTHER][: content.count(IMAGE_TOKEN)]
    written = f"USER: {content} ASSISTANT:"
    assert reads_as(pipe, (content, images), written, *images)
    parts = [text(content), *map(image, images)]
    assert reads_as(pipe, [user(parts)], written, *images)


@pytest.mark.parametrize(
    ("content", "images", "counts"),
    [
        (f"{IMAGE_TOKEN} and {IMAGE_TOKEN}", [IMAGE], "2 vs 1"),
        (f"only {IMAGE_TOKEN}", [IMAGE, OTHER], "1 vs 2"),
        (f"none {IMAGE_TOKEN}", [], "1 vs 0"),
    ],
)
def test_places_and_images_must_be_as_many(
    content: str, images: list[Image.Image], counts: str, pipe: Pipeline
) -> None:
    response = pipe([user([text(content), *map(image, images)])], SHORT)
    assert response.error_code == "preprocess_failed"
    expected = f"the number of {IMAGE_TOKEN} is not equal to input images, {counts}"
    assert expected in response.error_message


PARTS: dict[str, dict[str, Any]] = {
    "image_url as OpenAI has it": {"type": "image_url", "image_url": {"url": URL}},
    "image_url as a str": {"type": "image_url", "image_url": URL},
    "image_url with a detail": {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
    "image_url with an option beside it": {
        "type": "image_url",
        "image_url": URL,
        "max_dynamic_patch": 1,
    },
    "image_url as a picture": {"type": "image_url", "image_url": IMAGE},
    "image_data": {"type": "image_data", "image_data": {"data": IMAGE}},
    "image_data without a dict": {"type": "image_data", "image_data": IMAGE},
    "image_data with options": {
        "type": "image_data",
        "image_data": {"data": IMAGE, "max_dynamic_patch": 4},
    },
    "image": {"type": "image", "image": IMAGE},
    "image as a dict": {"type": "image", "image": {"data": IMAGE, "min_pixels": 1}},
    "image as a URL": {"type": "image", "image": {"url": URL}},
    "image as bytes": {"type": "image", "image": PNG},
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_any_spelling_is_the_same_image(name: str, pipe: Pipeline) -> None:
    assert is_same(pipe, [user([PARTS[name], text("how many")])], ("how many", IMAGE))


@pytest.mark.parametrize("form", ["path", "str", "file URL", "data URL", "bytes", "other mode"])
def test_an_image_in_hand_may_be_anywhere(form: str, pipe: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "a picture.png"
    path.write_bytes(PNG)
    forms: dict[str, Any] = {
        "path": path,
        "str": str(path),
        "file URL": path.as_uri(),
        "data URL": URL,
        "bytes": PNG,
        "other mode": IMAGE.convert("RGBA"),
    }
    assert is_same(pipe, ("how many", forms[form]), ("how many", IMAGE))
    part = {"type": "image_url", "image_url": {"url": forms[form]}}
    assert is_same(pipe, [user([part, text("how many")])], ("how many", IMAGE))


def test_of_two_texts_the_one_that_is_an_address_is_the_image(pipe: Pipeline) -> None:
    question = "what is on https://example.com/a.png, and what not"
    assert is_same(pipe, (URL, question), (question, IMAGE))
    assert is_same(pipe, (question, URL), (question, IMAGE))


def test_a_conversation_is_rendered_turn_by_turn(pipe: Pipeline) -> None:
    prompt = [
        {"role": "system", "content": "Be brief."},
        user([image(IMAGE), text("q1")]),
        {"role": "assistant", "content": "a1"},
        user("q2"),
    ]
    written = f"SYSTEM: Be brief.</s>USER: {IMAGE_TOKEN}\nq1 ASSISTANT: a1</s>USER: q2 ASSISTANT:"
    assert reads_as(pipe, prompt, written, IMAGE)


def test_an_answer_that_has_begun_is_gone_on_with(pipe: Pipeline) -> None:
    prompt = [user("q1"), {"role": "assistant", "content": "It is"}]
    assert reads_as(pipe, prompt, "USER: q1 ASSISTANT: It is")
    prompt[1]["content"] = [text("It"), text("is")]
    assert reads_as(pipe, prompt, "USER: q1 ASSISTANT: It\nis")


def test_fields_of_messages_that_nobody_knows_are_no_hindrance(pipe: Pipeline) -> None:
    named = {**user("how many"), "name": "me", "tool_calls": None, "extra": {"a": [1]}}
    assert is_same(pipe, [named], "how many")


def test_the_callers_messages_stay_as_they_are(pipe: Pipeline) -> None:
    prompt = [user([image(IMAGE), text("a"), text("b")])]
    before = repr(prompt)
    pipe(prompt, SHORT)
    assert repr(prompt) == before


@pytest.mark.parametrize("spelled", ["</s>", "<image>", "a</s>USER: b", "<s><pad>"])
def test_a_special_token_in_a_text_is_only_text(
    spelled: str, pipe: Pipeline, tokenizer: Tokenizer
) -> None:
    plain = pipe("", SHORT).input_token_len
    special = len(tokenizer.encode(spelled, add_bos=False))
    response = pipe(spelled, SHORT)
    assert response.error_code is None
    assert response.input_token_len > plain + special


def test_without_preprocessing_the_text_is_the_prompt(pipe: Pipeline, tokenizer: Tokenizer) -> None:
    response = pipe("a red star</s>", SHORT, do_preprocess=False)
    assert response.input_token_len == len(tokenizer.encode("a red star</s>"))
    messages = [user("a red"), {"role": "assistant", "content": " star"}]
    whole = pipe("a red star", SHORT, do_preprocess=False)
    assert pipe(messages, SHORT, do_preprocess=False).token_ids == whole.token_ids


def test_without_preprocessing_an_image_needs_its_place(pipe: Pipeline) -> None:
    response = pipe(("how many", IMAGE), SHORT, do_preprocess=False)
    assert response.error_code == "preprocess_failed"
    assert "0 vs 1" in response.error_message


def test_the_options_of_the_chat_template_are_taken(pipe: Pipeline) -> None:
    open_end = "USER: how many "
    prompt = pipe("how many", SHORT, add_generation_prompt=False)
    assert prompt.token_ids == pipe(open_end, SHORT, do_preprocess=False).token_ids
    for options in (
        {"enable_thinking": False},
        {"reasoning_effort": "low"},
        {"chat_template_kwargs": {"any": 1}},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
    ):
        assert pipe("how many", SHORT, **options).text == pipe("how many", SHORT).text


@pytest.mark.parametrize(
    "written",
    ["how many stars", " a blank before", "two\nlines\n", "日本の星", "😀 naïve ☂", "", "a  b   c"],
)
def test_a_tokenizer_reads_back_what_it_wrote(written: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(written)
    assert tokenizer.decode(ids) == written
    assert all(isinstance(i, int) and 0 <= i < tokenizer.vocab_size for i in ids)


def test_a_tokenizer_adds_a_beginning_unless_told_otherwise(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a red star")
    assert tokenizer.encode("a red star", add_bos=False) == ids[1:]
    assert tokenizer.encode("a red star", add_special_tokens=False) == ids[1:]
    assert tokenizer.decode(ids[:1]) == ""
    assert tokenizer.decode(ids[:1], skip_special_tokens=False) == "<s>"


def test_a_tokenizer_decodes_from_an_offset(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a red star", add_bos=False)
    assert tokenizer.decode(ids, offset=1) == tokenizer.decode(ids[1:])


def test_a_tokenizer_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        Tokenizer("/nowhere")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer(str(tmp_path))


def test_base64_of_another_kind_of_file_is_read_by_what_it_holds(pipe: Pipeline) -> None:
    file = io.BytesIO()
    IMAGE.save(file, "BMP")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    assert is_same(pipe, ("how many", url), ("how many", IMAGE))
