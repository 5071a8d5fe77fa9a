"""Prompts read as transformers would have them, and a template can neither escape nor crash."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import LlavaProcessor

from vlmflow_engine.errors import InvalidRequestError, ModelError
from vlmflow_engine.inputs.chat_template import ChatTemplate, SpelledTokens
from vlmflow_engine.inputs.prompts import ImagePart, Message, TextPart

IMAGE = ImagePart(b"")
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
    messages = [
        Message("user", (TextPart("one"), TextPart("two"))),
        Message("assistant", ()),
        Message("user", (TextPart("three"),)),
    ]
    assert ChatTemplate(source, {}).render(messages, NOTHING_SPELLED) == "[one\ntwo][][three]"


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


# <s> begins others, <im begins <image>, and <image> begins <image_end>: the longest is meant.
TOKENS = ["<s>", "</s>", "<im", "<image>", "<image_end>", "<s><s>"]
SPELLINGS = st.lists(
    st.sampled_from([*TOKENS, "<", ">", "s>", "age>", "\U000f0000", "\U000f0001", "é", " "])
)


@settings(max_examples=300, deadline=None)
@given(pieces=SPELLINGS)
@example(pieces=["<im", "<image>", "age>"])
@example(pieces=["\U000f0000", "<image>", "\U000f0001", "</s>"])
def test_spelled_tokens_are_hidden_and_come_back(pieces: list[str]) -> None:
    text = "".join(pieces)
    spelled = SpelledTokens(TOKENS, [Message("user", (TextPart(text),))])
    hidden = spelled.hide(text)
    assert not any(token in hidden for token in TOKENS)
    assert spelled.show(hidden) == text
    assert bool(spelled) == any(token in text for token in TOKENS)


@settings(max_examples=200, deadline=None)
@given(pieces=SPELLINGS)
@example(pieces=["</", "s>"])
@example(pieces=["<ima", "g", "e>"])
def test_token_spelled_across_several_parts_is_hidden_too(pieces: list[str]) -> None:
    messages = [Message("user", tuple(TextPart(piece) for piece in pieces))]
    spelled = SpelledTokens(TOKENS, messages)
    template = ChatTemplate("{% for part in messages[0].content %}{{ part.text }}{% endfor %}", {})
    rendered = template.render(messages, spelled)
    assert not any(token in rendered for token in TOKENS)
    assert spelled.show(rendered) == "".join(pieces)


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
