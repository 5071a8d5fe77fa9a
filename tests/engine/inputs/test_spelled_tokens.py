"""Special tokens that texts spell, alone or together, are the texts' own characters."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlmflow_engine.inputs.chat_template import ChatTemplate
from vlmflow_engine.inputs.prompts import Message, TextPart
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
