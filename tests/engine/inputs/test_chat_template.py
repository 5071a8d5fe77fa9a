"""Prompts read as transformers would have them, and a template can neither escape nor crash."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlavaProcessor

from vlmflow_engine.errors import InvalidRequestError, ModelError
from vlmflow_engine.inputs.chat_template import ChatTemplate
from vlmflow_engine.inputs.placement import ImagePlacement, place_images
from vlmflow_engine.inputs.prompts import (
    ImagePart,
    Message,
    PromptOptions,
    TextPart,
    to_messages,
)
from vlmflow_engine.inputs.spelled_tokens import SpelledTokens

IMAGE = ImagePart(b"")
PLACEMENT = ImagePlacement("<image>")
NOTHING_SPELLED = SpelledTokens([], [])

CONVERSATIONS = {
    "text": [Message("user", (TextPart("What is it?"),))],
    "image": [Message("user", (IMAGE, TextPart("What is it?")))],
    "image last": [Message("user", (TextPart(" Compare "), TextPart("these."), IMAGE, IMAGE))],
    "turns": [
        Message("system", (TextPart("Be brief."),)),
        Message("user", (IMAGE, TextPart("One or two?\n"))),
        Message("assistant", (TextPart('"Two" <é> \U0001f600'),)),
        Message("user", (TextPart("And now?"),)),
    ],
}
TEMPLATES = {
    "parts by type": (
        "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
        "{{ '<image>\n' }}{% endfor %}"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
        "{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    "block lines": """
        {% for message in messages %}
            {% if loop.first and message.role != 'system' %}
    <|im_start|>system
Be kind.<|im_end|>
            {% endif %}
    <|im_start|>{{ message.role }}
            {% for part in message.content %}
                {%- if part.type == 'image' %}<image>{% else %}{{ part.text | trim }}{% endif %}
            {% endfor %}<|im_end|>
        {% endfor %}
""",
    "special tokens": "{{ bos_token }}{{ messages | length }}{{ eos_token }}|{{ pad_token }}",
    "model's own token": "{% for part in messages[-1]['content'] %}{{ image_token }}{% endfor %}",
    "unknown variable": "{{ nothing }}{% if nothing is defined %}never{% endif %}",
    "counter": (
        "{% set count = namespace(value=0) %}{% for message in messages %}"
        "{% set count.value = count.value + message.content | length %}{% endfor %}"
        "{{ count.value }}"
    ),
    "json": "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }}",
    "json in ASCII": "{{ messages | tojson(ensure_ascii=True) }}",
    "year": "{{ strftime_now('%Y') }}",
    "loop control": (
        "{% for message in messages %}{% if message.role == 'system' %}{% continue %}{% endif %}"
        "{{ message.role }}{% break %}{% endfor %}"
    ),
    "assistant mask": (
        "{% for message in messages %}{% for part in message.content if part.type == 'text' %}"
        "{% generation %}{{ part.text }}{% endgeneration %}{% endfor %}{% endfor %}"
    ),
}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_prompt_reads_as_transformers_renders_it(
    template: str,
    conversation: str,
    with_template: Callable[[str], Path],
    processor: LlavaProcessor,
) -> None:
    source, messages = TEMPLATES[template], CONVERSATIONS[conversation]
    expected = processor.apply_chat_template(
        _as_transformers_has_them(messages), chat_template=source, add_generation_prompt=True
    )
    rendered = ChatTemplate.from_folder(with_template(source)).render(messages, NOTHING_SPELLED)
    assert rendered == expected


# Content is a str to these, as to vicuna's and many a text model's: lists they print or refuse.
STR_TEMPLATES = {
    "adds": (
        "{% for message in messages %}{% if message.role == 'user' %}"
        "{{ 'USER: ' + message['content'] + ' ' }}{% else %}"
        "{{ 'ASSISTANT: ' + message['content'] + '</s>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "strips": (
        "{% for message in messages %}<{{ message.role }}>{{ message.content.strip() }}</s>\n"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    ),
    "prints": "{% for message in messages %}[{{ message.content }}]{% endfor %}",
}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", STR_TEMPLATES)
def test_template_that_takes_texts_only_gets_images_as_text(
    template: str,
    conversation: str,
    with_template: Callable[[str], Path],
    processor: LlavaProcessor,
) -> None:
    source, messages = STR_TEMPLATES[template], CONVERSATIONS[conversation]
    as_str = [{"role": m.role, "content": PLACEMENT.write(m)} for m in messages]
    expected = processor.tokenizer.apply_chat_template(
        as_str, chat_template=source, add_generation_prompt=True, tokenize=False
    )
    ours = ChatTemplate.from_folder(with_template(source), PLACEMENT)
    assert ours.render(messages, NOTHING_SPELLED) == expected
    num_images = sum(isinstance(part, ImagePart) for m in messages for part in m.parts)
    assert expected.count("<image>") == num_images


def test_template_that_leaves_images_out_of_lists_gets_them_as_text() -> None:
    source = (
        "{% for message in messages %}{% if message.content is string %}{{ message.content }}"
        "{% else %}{% for part in message.content if part.type == 'text' %}{{ part.text }}"
        "{% endfor %}{% endif %}{% endfor %}"
    )
    template = ChatTemplate(source, {}, PLACEMENT)
    assert template.render(CONVERSATIONS["image"], NOTHING_SPELLED) == "<image>\nWhat is it?"


def test_template_may_take_a_str_from_one_role_and_lists_from_another() -> None:
    source = (
        "{% for message in messages %}{% if message.role == 'user' %}"
        "{% for part in message.content %}{{ part.text or '<image>' }}{% endfor %}|"
        "{% else %}{{ message.role + ': ' + message.content }}|{% endif %}{% endfor %}"
    )
    result = Message("tool", (TextPart("5"),))
    rendered = ChatTemplate(source, {}, PLACEMENT).render(
        [*CONVERSATIONS["turns"], result], NOTHING_SPELLED
    )
    assert rendered == (
        'system: Be brief.|<image>One or two?\n|assistant: "Two" <é> \U0001f600|And now?|tool: 5|'
    )


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", ["parts by type", "block lines"])
def test_template_that_takes_lists_gets_them_when_images_can_be_placed(
    template: str, conversation: str
) -> None:
    source, messages = TEMPLATES[template], CONVERSATIONS[conversation]
    assert ChatTemplate(source, {}, PLACEMENT).render(messages, NOTHING_SPELLED) == ChatTemplate(
        source, {}
    ).render(messages, NOTHING_SPELLED)


@pytest.mark.parametrize("source", [TEMPLATES["parts by type"], STR_TEMPLATES["adds"]])
def test_image_stands_where_its_user_wrote_it(source: str) -> None:
    messages = place_images(
        [
            Message(
                "user",
                (IMAGE, TextPart("Is <IMAGE_TOKEN> a dog?"), IMAGE, TextPart("Or <IMAGE_TOKEN>?")),
            )
        ]
    )
    rendered = ChatTemplate(source, {}, PLACEMENT).render(messages, NOTHING_SPELLED)
    assert rendered == "USER: Is <image> a dog?\nOr <image>? ASSISTANT:"


ANSWER_BEGINS = {
    "word": "It is",
    "blank": "It is ",
    "lines": "It\nis\n",
    "nothing": "",
}


@pytest.mark.parametrize("begins", ANSWER_BEGINS)
@pytest.mark.parametrize("template", ["adds", "strips", "prints"])
def test_answer_that_has_begun_is_continued_as_transformers_does(
    template: str, begins: str, with_template: Callable[[str], Path], processor: LlavaProcessor
) -> None:
    source, text = STR_TEMPLATES[template], ANSWER_BEGINS[begins]
    messages = [*CONVERSATIONS["text"], Message("assistant", (TextPart(text),))]
    expected = processor.tokenizer.apply_chat_template(
        [{"role": m.role, "content": PLACEMENT.write(m)} for m in messages],
        chat_template=source,
        continue_final_message=True,
        tokenize=False,
    )
    template_ = ChatTemplate.from_folder(with_template(source), PLACEMENT)
    assert template_.render(messages, NOTHING_SPELLED) == expected
    lists = ChatTemplate(TEMPLATES["parts by type"], {}, PLACEMENT)
    assert lists.render(messages, NOTHING_SPELLED).endswith(f"ASSISTANT: {text}")


@pytest.mark.parametrize("add_prompt", [True, False])
def test_prompt_for_an_answer_is_added_as_asked(
    add_prompt: bool, with_template: Callable[[str], Path], processor: LlavaProcessor
) -> None:
    source = STR_TEMPLATES["adds"]
    messages = [*CONVERSATIONS["text"], Message("assistant", (TextPart("A dog."),))]
    expected = processor.tokenizer.apply_chat_template(
        [{"role": m.role, "content": PLACEMENT.write(m)} for m in messages],
        chat_template=source,
        add_generation_prompt=add_prompt,
        tokenize=False,
    )
    template = ChatTemplate.from_folder(with_template(source), PLACEMENT)
    options = PromptOptions(add_generation_prompt=add_prompt)
    assert template.render(messages, NOTHING_SPELLED, options) == expected


def test_template_is_asked_for_no_prompt_where_an_answer_has_begun() -> None:
    template = ChatTemplate("{{ add_generation_prompt }}{{ messages[-1].content[0].text }}", {})
    begun = [*CONVERSATIONS["text"], Message("assistant", (TextPart("It is"),))]
    assert template.render(begun, NOTHING_SPELLED) == "FalseIt is"
    assert template.render(CONVERSATIONS["text"], NOTHING_SPELLED) == "TrueWhat is it?"


def test_answer_that_the_template_leaves_out_cannot_be_continued() -> None:
    template = ChatTemplate("{{ messages[0].content[0].text }}", {})
    messages = [*CONVERSATIONS["text"], Message("assistant", (TextPart("It is"),))]
    with pytest.raises(InvalidRequestError, match="to be continued"):
        template.render(messages, NOTHING_SPELLED)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tools": [{"type": "function", "function": {"name": "f", "description": "é <f>"}}]},
        {"reasoning_effort": "low", "enable_thinking": False},
        {"chat_template_kwargs": {"style": {"words": [1, None]}, "enable_thinking": True}},
    ],
)
def test_template_sees_the_variables_that_transformers_gives_it(
    options: dict[str, Any], with_template: Callable[[str], Path], processor: LlavaProcessor
) -> None:
    source = (
        "{{ tools | tojson }}{% if tools is not none %}tools{% endif %}{{ documents }}"
        "{{ reasoning_effort }}{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}"
        "{{ style }}{{ messages[0].name }}{{ messages[0].calls }}"
    )
    message = {"role": "user", "content": "hi", "name": "Ann", "calls": [{"id": 1}]}
    variables = dict(options)
    variables.update(variables.pop("chat_template_kwargs", {}))
    expected = processor.tokenizer.apply_chat_template(
        [message], chat_template=source, tokenize=False, **variables
    )
    template = ChatTemplate.from_folder(with_template(source), PLACEMENT)
    assert (
        template.render(to_messages([message]), NOTHING_SPELLED, PromptOptions(**options))
        == expected
    )


@pytest.mark.parametrize(
    "source",
    [
        "{% for message in messages %}{{ '[' + message['content'] + ']' }}{% endfor %}",
        "{% for message in messages %}[{{ message.content | trim }}]{% endfor %}",
        "{% for message in messages if message.content is string %}[{{ message.content }}]"
        "{% endfor %}",
    ],
    ids=["added", "filtered", "asked_for"],
)
def test_a_template_of_texts_gets_texts(source: str) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = to_messages(
        [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": None},
            {"role": "user", "content": "three"},
        ]
    )
    rendered = ChatTemplate(source, {}, PLACEMENT).render(messages, NOTHING_SPELLED)
    assert rendered == "[one\ntwo][][three]"


def test_a_template_of_both_gets_parts() -> None:
    source = (
        "{% for message in messages %}{% if message.content is string %}{{ message.content }}"
        "{% else %}{% for part in message.content %}({{ part.text }}){% endfor %}{% endif %}"
        "{% endfor %}"
    )
    messages = [Message("user", (TextPart("one"), TextPart("two")))]
    assert ChatTemplate(source, {}).render(messages, NOTHING_SPELLED) == "(one)(two)"


def test_a_template_that_refuses_every_single_message_gets_parts() -> None:
    source = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
        "{% for part in messages[1].content %}{{ part.text }}{% endfor %}"
    )
    messages = [Message("system", ()), Message("user", (TextPart("a"), TextPart("b")))]
    assert ChatTemplate(source, {}).render(messages, NOTHING_SPELLED) == "ab"


@pytest.mark.parametrize(
    "names",
    [
        ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"],
        ["chat_template.json", "tokenizer_config.json"],
        ["tokenizer_config.json"],
    ],
    ids=lambda names: names[0],
)
def test_template_is_found_where_checkpoints_keep_it(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        in_json = json.dumps({"chat_template": name})
        (tmp_path / name).write_text(name if name.endswith(".jinja") else in_json)
    template = ChatTemplate.from_folder(tmp_path)
    assert template.render(CONVERSATIONS["text"], NOTHING_SPELLED) == names[0]


def test_special_token_stored_with_its_properties_is_its_content(tmp_path: Path) -> None:
    config = {"chat_template": "{{ bos_token }}", "bos_token": {"content": "<s>", "lstrip": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    template = ChatTemplate.from_folder(tmp_path)
    assert template.render(CONVERSATIONS["text"], NOTHING_SPELLED) == "<s>"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("nothing.txt", b""),
        ("tokenizer_config.json", b"{}"),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b"{"),
        ("chat_template.json", b'{"chat_template": 5}'),
        ("chat_template.jinja", b"{% for message in messages %}"),
        ("chat_template.jinja", b"{{ messages | no_such_filter }}"),
        ("chat_template.jinja", b"\xff\xfe"),
    ],
)
def test_missing_or_broken_template_is_the_models_fault(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError):
        ChatTemplate.from_folder(tmp_path)


def test_what_a_template_objects_to_is_told() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(InvalidRequestError, match="roles must alternate"):
        template.render(CONVERSATIONS["text"], NOTHING_SPELLED)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ '{x.__class__.__mro__}'.format_map({'x': messages}) }}",
        "{{ messages | map(attribute='__class__.__mro__') | list }}",
        "{{ (messages | attr('__class__')).__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'].system('true') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__code__.co_consts }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ messages[0]['content'].clear() }}",
    ],
)
def test_template_cannot_reach_out_of_the_sandbox(source: str) -> None:
    template = ChatTemplate(source, {"bos_token": "<s>"})
    with pytest.raises(InvalidRequestError):
        template.render(CONVERSATIONS["image"], NOTHING_SPELLED)


@pytest.mark.parametrize(
    "source",
    ["{{ messages.__class__ }}", "{{ messages | attr('__class__') }}", "{{ ''.__doc__ }}"],
)
def test_hidden_attribute_is_nothing_to_a_template(source: str) -> None:
    assert ChatTemplate(source, {}).render(CONVERSATIONS["text"], NOTHING_SPELLED) == ""


@pytest.mark.parametrize(
    "source",
    [
        "{{ nothing.at.all }}",
        "{{ messages[0]['content'] + 'text' }}",
        "{{ 1 / 0 }}",
        "{% for _ in range(10 ** 9) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{{ messages | tojson(no_such_option=1) }}",
        "{{ strftime_now(5) }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_template_that_fails_on_a_prompt_fails_that_request_only(source: str) -> None:
    template = ChatTemplate(source, {})
    with pytest.raises(InvalidRequestError):
        template.render(CONVERSATIONS["image"], NOTHING_SPELLED)


@pytest.fixture
def with_template(checkpoint: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return the checkpoint's tokenizer_config.json beside another template."""

    def write(source: str) -> Path:
        (tmp_path / "tokenizer_config.json").write_bytes(
            (checkpoint / "tokenizer_config.json").read_bytes()
        )
        (tmp_path / "chat_template.jinja").write_text(source)
        return tmp_path

    return write


def _as_transformers_has_them(messages: list[Message]) -> list[dict[str, Any]]:
    return [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part.text}
                if isinstance(part, TextPart)
                else {"type": "image"}
                for part in message.parts
            ],
        }
        for message in messages
    ]
