"""Special tokens that texts spell, alone or together, are the texts' own characters."""

import re
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlmflow_engine.inputs.chat_template import ChatTemplate
from vlmflow_engine.inputs.prompts import Message, PromptOptions, TextPart
from vlmflow_engine.inputs.spelled_tokens import SpelledTokens

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
    assert spelled.is_hiding_in(hidden) == any(token in text for token in TOKENS)


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


# What templates do with several texts that spell no token by themselves.
JOINING = [
    "{% for part in messages[0].content %}{{ part.text | trim }}{% endfor %}",
    "{% for part in messages[0].content | reverse %}{{ part.text }}{% endfor %}",
    "{{ messages[0].content | map(attribute='text') | join | replace(' ', '') }}",
    "{{ messages[0].content[0].text }}{{ messages[0].name }}{{ tools[0].name }}{{ style }}",
    "{{ style }}{{ messages[0].call.id }}{{ messages[0].content[-1].text }}",
    "<{{ messages[0].content[0].text }}<{{ messages[0].content[-1].text }}",
]


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from([*TOKENS, "<", " <ima ", " ge> ", "/s>", "<s", ">", "é"]), min_size=1
    )
)
@example(pieces=["<ima ", " ge>"])
@example(pieces=["/s>", "<"])
def test_template_makes_no_token_of_texts_that_it_joins(pieces: list[str]) -> None:
    extras = {"name": pieces[0], "call": {"id": pieces[-1]}}
    messages = [Message("user", tuple(TextPart(piece) for piece in pieces), extras=extras)]
    options = PromptOptions(tools=[{"name": pieces[0]}], chat_template_kwargs={"style": pieces[-1]})
    spelled = SpelledTokens(TOKENS, messages, options.template_variables())
    for source in JOINING:
        rendered = ChatTemplate(source, {}).render(messages, spelled, options)
        assert not re.search(r"<s>|</s>|<image|<im", rendered)


def _render(source: str, messages: list[Message], **variables: Any) -> tuple[str, str]:
    """Render a template; return the text with what is hidden, and as it is spelled."""
    options = PromptOptions(chat_template_kwargs=variables)
    spelled = SpelledTokens(TOKENS, messages, options.template_variables())
    rendered = ChatTemplate(source, {}).render(messages, spelled, options)
    return rendered, spelled.show(rendered)


def test_token_in_any_field_of_a_message_or_variable_is_hidden() -> None:
    extras = {"tool_calls": [{"function": {"arguments": {"<s>": ["</s>", 5, None, True]}}}]}
    messages = [Message("assistant", (TextPart("hi"),), extras=extras)]
    source = "<s>{{ messages[0].tool_calls | tojson }}{{ style | tojson }}{{ messages[0].role }}"
    hidden, shown = _render(source, [*messages, Message("user", ())], style={"<image>": ["<im"]})
    assert [token for token in TOKENS if token in hidden] == ["<s>"]
    assert shown == (
        '<s>[{"function": {"arguments": {"<s>": ["</s>", 5, null, true]}}}]{"<image>": ["<im"]}'
        "assistant"
    )


def test_token_that_only_a_variable_spells_loses_one_character() -> None:
    messages = [Message("user", (TextPart("hi"),))]
    hidden, shown = _render("{{ style }}|{{ tools }}", messages, style="a <image> > b")
    assert shown == "a <image> > b|None"
    assert hidden[:2] + hidden[3:] == "a image> > b|None"


def test_template_finds_in_a_text_what_is_no_token() -> None:
    source = "{{ messages[0].content[0].text.split('</think>')[-1] }}"
    messages = [Message("user", (TextPart("<think>so</think>done < all"),))]
    assert _render(source, messages)[0] == "done < all"
