"""An answer's text grows by whole characters, and ends where it spells a stop word."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmflow_engine.inputs.answer_text import AnswerText
from vlmflow_engine.inputs.chat_template import SpelledTokens
from vlmflow_engine.inputs.tokenizer import PromptTokenizer

FOLDER = Path(__file__).parents[3] / "examples/shapes/checkpoint"
TOKENIZER = PromptTokenizer.from_folder(FOLDER)
VOCAB_SIZE = 512

TEXTS = st.text(alphabet="ab é漢🙂.x\n", max_size=20)
IDS = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=20)
WORDS = st.lists(st.text(alphabet="ab é漢", min_size=1, max_size=4), max_size=3)


def encode(text: str) -> list[int]:
    bos, *ids = TOKENIZER.encode_prompt(text, SpelledTokens((), ()))
    assert bos == TOKENIZER.token_id("<s>")
    return ids


def run(ids: list[int], **options) -> tuple[AnswerText, list[tuple[str, list[int]]]]:
    """Push tokens until a stop word; return the text and the chunks it was taken in."""
    answer, chunks = AnswerText(TOKENIZER, **options), []
    for token_id in ids:
        answer.push(token_id)
        chunks.append(answer.take())
        if answer.is_stopped:
            break
    answer.finish()
    chunks.append(answer.take())
    return answer, chunks


@given(IDS | TEXTS.map(encode))
def test_chunks_make_up_the_text_of_all_tokens(ids):
    answer, chunks = run(ids)
    assert "".join(text for text, _ in chunks) == answer.text == TOKENIZER.decode(ids)
    assert answer.token_ids == ids


@given(TEXTS)
def test_no_chunk_ends_inside_a_character(text):
    _, chunks = run(encode(text))
    assert all("\ufffd" not in chunk for chunk, _ in chunks)


@given(TEXTS | IDS.map(TOKENIZER.decode), WORDS)
def test_text_ends_before_the_first_stop_word_to_be_complete_and_nothing_of_it_is_shown(
    text, words
):
    ids = encode(text)
    answer, chunks = run(ids, stop_words=words)
    places = [(text.find(word) + len(word), text.find(word)) for word in words if word in text]
    assert "".join(chunk for chunk, _ in chunks) == answer.text
    assert answer.text == (text[: min(places)[1]] if places else text)
    assert answer.is_stopped == bool(places)


@given(TEXTS, WORDS)
def test_tokens_are_those_that_the_text_begins_in(text, words):
    ids = encode(text)
    answer, chunks = run(ids, stop_words=words)
    taken = [token_id for _, token_ids in chunks for token_id in token_ids]
    assert answer.token_ids == ids[: len(answer.token_ids)]
    assert taken == answer.token_ids[: len(taken)]
    assert TOKENIZER.decode(answer.token_ids).startswith(answer.text)


def test_stop_word_may_be_kept():
    answer, _ = run(encode("a red star here"), stop_words=["star"], include_stop_word=True)
    assert answer.text == "a red star"


def test_of_two_stop_words_the_first_in_the_text_counts():
    assert run(encode("one two three"), stop_words=["three", "two"])[0].text == "one "


def test_stop_word_does_not_count_before_so_many_tokens():
    ids = encode("aaaa. bbbb. cccc.")
    first = next(n for n in range(len(ids)) if "." in TOKENIZER.decode(ids[:n]))
    answer, _ = run(ids, stop_words=["."], min_new_tokens=first + 1)
    assert answer.text == "aaaa. bbbb"


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_are_shown_on_demand(skip):
    ids = [*encode("red"), TOKENIZER.token_id("</s>"), *encode("blue")]
    answer, _ = run(ids, skip_special_tokens=skip)
    assert answer.text == ("redblue" if skip else "red</s>blue")
