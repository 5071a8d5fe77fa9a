"""Every form of a prompt becomes the same messages; what has no known form is refused."""

from pathlib import Path
from typing import Any

import pytest

from vlmflow_engine.errors import InvalidRequestError
from vlmflow_engine.inputs.prompts import (
    ImagePart,
    Message,
    PromptOptions,
    TextPart,
    TokenIds,
    history_messages,
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
        ("What is it?", (IMAGE,)),
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


@pytest.mark.parametrize(
    "image",
    [
        "http://host/a.png",
        "HTTPS://host/page?id=5",
        "data:image/png;base64,iVBORw0 KGgo=",
        "file:///a/b",
        "s3://bucket/key",
        "/data/blob",
        "./blob",
        "../blob",
        "scene.png",
        "a/scene.JPEG",
    ],
)
@pytest.mark.parametrize(
    "text",
    [
        "What is it?",
        "",
        "http://host/ is what site?",
        "What is on http://host/a.png",
        "Describe scene.png",
        "image",
        "and/or",
        "3.5",
    ],
)
def test_string_that_looks_like_an_image_is_the_image_on_either_side(text: str, image: str) -> None:
    expected = [Message("user", (ImagePart(image), TextPart(text)))]
    assert to_messages((text, image)) == expected
    assert to_messages((image, text)) == expected


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("What is it?", "scene"),
        ("http://host/a.png", "http://host/b.png"),
        ("http://host/ is what?", "http://host/ also"),
        ("What is on http://host/a.png", "some file"),
    ],
)
def test_first_of_two_strings_that_look_alike_is_the_text(first: str, second: str) -> None:
    assert to_messages((first, second)) == [Message("user", (ImagePart(second), TextPart(first)))]


def test_text_beside_an_image_in_hand_is_text_whatever_it_looks_like() -> None:
    for pair in [("http://host/a.png", IMAGE), (IMAGE, "http://host/a.png")]:
        assert to_messages(pair) == [
            Message("user", (ImagePart(IMAGE), TextPart("http://host/a.png")))
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


def test_texts_of_a_message_without_images_are_joined_by_lines() -> None:
    content = [TEXT_PART, "And", {"type": "text", "text": ""}, "where?"]
    for role in ("system", "user", "assistant", "tool"):
        assert to_messages([{"role": role, "content": content}]) == [
            Message(role, (TextPart("What is it?\nAnd\n\nwhere?"),))
        ]


def test_unknown_fields_of_a_message_are_kept() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    turns = [
        {"role": "user", "content": "hi", "name": "Ann"},
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "content": "5", "tool_call_id": "1"},
    ]
    assert to_messages(turns) == [
        Message("user", (TextPart("hi"),), extras={"name": "Ann"}),
        Message("assistant", (TextPart(""),), extras={"tool_calls": calls}),
        Message("tool", (TextPart("5"),), extras={"tool_call_id": "1"}),
    ]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": IMAGE, "max_dynamic_patch": 6, "max_pixels": 9},
        {"type": "image", "image": {"data": IMAGE, "max_dynamic_patch": 6, "max_pixels": 9}},
        {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}, "max_pixels": 9},
        {
            "type": "image_data",
            "image_data": {"data": IMAGE, "max_dynamic_patch": 6},
            "max_dynamic_patch": 12,
            "max_pixels": 9,
            "cache_control": "unknown",
        },
    ],
)
def test_options_of_an_image_stand_beside_it_or_inside(part: Any) -> None:
    (message,) = to_messages([{"role": "user", "content": [part]}])
    assert message.parts == (ImagePart(IMAGE, {"max_dynamic_patch": 6, "max_pixels": 9}),)


@pytest.mark.parametrize(
    "kind", ["video", "video_url", "audio", "audio_url", "input_audio", "time_series_url"]
)
def test_media_that_are_no_images_are_refused_by_name(kind: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"'{kind}' is not supported"):
        to_messages([{"role": "user", "content": [{"type": kind, kind: {"url": "a"}}]}])


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
        ([{"role": "user", "content": [{"type": "sound", "sound": "a"}]}], "'sound'"),
        ([{"role": "user", "content": [{"type": "image", "image": {"data": None}}]}], "no image"),
        ([{"role": "user", "content": "hi", "name": b"Ann"}], "must be JSON"),
        ([{"role": "user", "content": "hi", "name": "\ud800"}], "must be JSON"),
        (TokenIds([1]), "TokenIds"),
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
        (TokenIds([1, 2]), True),
        ([TokenIds([1, 2])], False),
        (("one", "two", "three"), False),
        (("one",), False),
        ((), False),
        (iter(["hi"]), False),
    ],
)
def test_one_prompt_is_told_from_a_batch(prompts: Any, is_single: bool) -> None:
    assert is_single_prompt(prompts) is is_single


def test_history_is_a_conversation_of_prompts_in_any_form_and_their_answers() -> None:
    history = [
        ("hi", "Hello."),
        (("What is it?", "scene.png"), "A <IMAGE_TOKEN>."),
        ([{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}], "So."),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": IMAGE, "detail": "high"},
                        "one <IMAGE_TOKEN>",
                        "two",
                    ],
                    "name": "Ann",
                }
            ],
            "",
        ),
    ]
    conversation = history_messages(history, ("And this?", [IMAGE, "b.png"]))
    assert to_messages(conversation) == [
        Message("user", (TextPart("hi"),)),
        Message("assistant", (TextPart("Hello."),)),
        Message("user", (ImagePart("scene.png"), TextPart("What is it?"))),
        Message("assistant", (TextPart("A <IMAGE_TOKEN>."),)),
        Message("system", (TextPart("be brief"),)),
        Message("user", (TextPart("why?"),)),
        Message("assistant", (TextPart("So."),)),
        Message(
            "user",
            (
                ImagePart(IMAGE, {"max_dynamic_patch": 24}),
                TextPart("one <IMAGE_TOKEN>"),
                TextPart("two"),
            ),
            extras={"name": "Ann"},
        ),
        Message("assistant", (TextPart(""),)),
        Message("user", (ImagePart(IMAGE), ImagePart("b.png"), TextPart("And this?"))),
    ]
    assert is_single_prompt(conversation)


def test_without_a_history_a_prompt_is_what_it_was() -> None:
    assert to_messages(history_messages([], ("What is it?", IMAGE))) == ASKED


def test_options_for_templates_are_their_variables() -> None:
    tool = {"type": "function"}
    assert PromptOptions().template_variables() == {"tools": None}
    assert PromptOptions(tools=[]).template_variables() == {"tools": None}
    assert PromptOptions(
        tools=[tool],
        reasoning_effort="low",
        enable_thinking=False,
        chat_template_kwargs={"style": ["terse"]},
    ).template_variables() == {
        "tools": [tool],
        "reasoning_effort": "low",
        "enable_thinking": False,
        "style": ["terse"],
    }


def test_template_variable_wins_over_its_older_spelling() -> None:
    options = PromptOptions(enable_thinking=True, chat_template_kwargs={"enable_thinking": False})
    assert options.template_variables()["enable_thinking"] is False


@pytest.mark.parametrize(
    "options",
    [
        {"do_preprocess": None},
        {"do_preprocess": 1},
        {"add_generation_prompt": "yes"},
        {"enable_thinking": 1},
        {"reasoning_effort": "huge"},
        {"reasoning_effort": ["low"]},
        {"tools": {"type": "function"}},
        {"tools": "search"},
        {"tools": [print]},
        {"tools": [{"function": print}]},
        {"tools": [{"name": "\ud800"}]},
        {"chat_template_kwargs": [("a", 1)]},
        {"chat_template_kwargs": {"a": object()}},
        {"chat_template_kwargs": {5: "a"}},
        {"chat_template_kwargs": {"messages": []}},
        {"chat_template_kwargs": {"add_generation_prompt": False}},
    ],
)
def test_option_that_is_no_json_or_not_allowed_is_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(InvalidRequestError, match=name):
        PromptOptions(**options)


def test_option_that_contains_itself_is_refused() -> None:
    variables: dict[str, Any] = {}
    variables["self"] = variables
    with pytest.raises(InvalidRequestError, match="JSON"):
        PromptOptions(chat_template_kwargs=variables)
