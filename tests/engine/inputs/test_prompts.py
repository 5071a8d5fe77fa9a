"""Every form of a prompt becomes the same messages; what has no known form is refused."""

from pathlib import Path
from typing import Any

import pytest

from vlmflow_engine.errors import InvalidRequestError
from vlmflow_engine.inputs.prompts import (
    ImagePart,
    Message,
    TextPart,
    is_single_prompt,
    to_messages,
)

IMAGE = b"the bytes of a file"
ASKED = [Message("user", (ImagePart(IMAGE), TextPart("What is it?")))]
TEXT_PART = {"type": "text", "text": "What is it?"}


@pytest.mark.parametrize(
    "prompt",
    [
        ("What is it?", IMAGE),
        (IMAGE, "What is it?"),
        ("What is it?", [IMAGE]),
        ([IMAGE], "What is it?"),
        [{"role": "user", "content": [{"type": "image", "image": IMAGE}, TEXT_PART]}],
        [{"role": "user", "content": [{"type": "image", "image": IMAGE}, "What is it?"]}],
        [{"role": "user", "content": [{"type": "image_data", "image_data": IMAGE}, TEXT_PART]}],
        [
            {
                "role": "user",
                "content": [{"type": "image_data", "image_data": {"data": IMAGE}}, TEXT_PART],
            }
        ],
        [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": IMAGE}}, TEXT_PART],
            }
        ],
        [{"role": "user", "content": [{"type": "image_url", "image_url": IMAGE}, TEXT_PART]}],
    ],
)
def test_all_forms_of_text_and_image_are_one_message(prompt: Any) -> None:
    assert to_messages(prompt) == ASKED


@pytest.mark.parametrize("prompt", ["hi", ("hi", []), [{"role": "user", "content": "hi"}]])
def test_all_forms_of_a_text_are_one_message(prompt: Any) -> None:
    assert to_messages(prompt) == [Message("user", (TextPart("hi"),))]


def test_first_of_two_strings_is_the_text() -> None:
    assert to_messages(("scene.png", "other.png")) == [
        Message("user", (ImagePart("other.png"), TextPart("scene.png")))
    ]


def test_images_of_a_pair_keep_their_order() -> None:
    (message,) = to_messages(("compare", ["a.png", Path("b.png"), b"c"]))
    assert message.parts == (
        ImagePart("a.png"),
        ImagePart(Path("b.png")),
        ImagePart(b"c"),
        TextPart("compare"),
    )


def test_parts_of_a_message_keep_their_order() -> None:
    content = [TEXT_PART, {"type": "image", "image": "a"}, "and", {"type": "image", "image": "b"}]
    (message,) = to_messages([{"role": "user", "content": content}])
    assert message.parts == (
        TextPart("What is it?"),
        ImagePart("a"),
        TextPart("and"),
        ImagePart("b"),
    )


def test_turns_of_a_conversation_keep_their_roles_and_order() -> None:
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": []},
    ]
    assert to_messages(turns) == [
        Message("system", (TextPart("be brief"),)),
        Message("user", (TextPart("hi"),)),
        Message("assistant", (TextPart(""),)),
        Message("user", ()),
    ]


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        (None, "None"),
        (5, "5"),
        (b"bytes", "bytes"),
        ([], r"\[\]"),
        ({}, "{}"),
        ([{"role": "user", "content": "hi"}, "hi"], "unknown form"),
        ((), "two items, got 0"),
        (("a", "b", "c"), "two items, got 3"),
        ((1, 2), r"\(1, 2\)"),
        (([IMAGE], [IMAGE]), "neither item"),
        ([{"role": "robot", "content": "hi"}], "'robot'"),
        ([{"content": "hi"}], "None"),
        ([{"role": ["user"], "content": "hi"}], "role"),
        ([{"role": "user", "content": 5}], "got 5"),
        ([{"role": "user", "content": {"type": "text", "text": "hi"}}], "list of parts"),
        ([{"role": "user", "content": [5]}], "got 5"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "'text': None"),
        ([{"role": "user", "content": [{"type": "audio", "audio": "a"}]}], "'audio'"),
        ([{"role": "user", "content": [{"text": "hi"}]}], "part of a message"),
        ([{"role": "user", "content": [{"type": "image"}]}], "'image' names no image"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "no image"),
        ([{"role": "user", "content": [{"type": ["text"], "text": "hi"}]}], "part of a message"),
    ],
)
def test_unknown_form_is_refused_and_named(prompt: Any, what: str) -> None:
    with pytest.raises(InvalidRequestError, match=what):
        to_messages(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        b"x" * 100_000,
        (b"x" * 100_000, b"y" * 100_000),
        [{"role": "x" * 100_000, "content": "hi"}],
        [{"role": "user", "content": b"x" * 100_000}],
        [{"role": "user", "content": [{"type": "text", "words": "x" * 100_000}]}],
        [{"role": "user", "content": [{"type": "x" * 100_000}]}],
    ],
    ids=["prompt", "pair", "role", "content", "part", "type"],
)
def test_message_about_a_huge_prompt_is_short(prompt: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        to_messages(prompt)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("prompts", "is_single"),
    [
        ("hi", True),
        (("hi", IMAGE), True),
        ([{"role": "user", "content": "hi"}], True),
        (["hi"], False),
        ([("hi", IMAGE)], False),
        ([[{"role": "user", "content": "hi"}]], False),
        ([], False),
    ],
)
def test_one_prompt_is_told_from_a_batch(prompts: Any, is_single: bool) -> None:
    assert is_single_prompt(prompts) is is_single
