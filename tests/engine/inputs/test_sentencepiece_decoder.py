"""Ids read as sentencepiece reads them, all at once and one by one."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.tiny_tokenizers import (
    corpus,
    train_sentencepiece,
    write_internlm2,
    write_llama_sentencepiece,
)
from vlmflow_engine.inputs.answer_text import AnswerText
from vlmflow_engine.inputs.tokenizer import PromptTokenizer

KINDS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "no dummy blank": {"add_dummy_prefix": False},
    "blanks taken away": {"remove_extra_whitespaces": True},
    "unknown pieces": {"byte_fallback": False, "vocab_size": 400},
    "user-defined pieces": {"user_defined_symbols": "<ud>,▁▁,▁▁▁▁,\n\n"},
}
NUM_IDS = 400
FIRST_BYTE = 3
# Bytes of 你, 🙂 and é, and some that begin no character, in any order.
BYTES = st.sampled_from([FIRST_BYTE + byte for byte in "你🙂é ".encode() + b"\xff\xc0"])
IDS = st.lists(BYTES | st.integers(1, NUM_IDS - 1), max_size=14)


@cache
def _both(kind: str, folder: Path) -> tuple[PromptTokenizer, sentencepiece.SentencePieceProcessor]:
    raw = train_sentencepiece(**KINDS[kind])
    folder = folder / kind
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(raw)
    return (
        PromptTokenizer.from_folder(folder),
        sentencepiece.SentencePieceProcessor(model_proto=raw),
    )


@cache
def _checkpoint(folder: Path, name: str) -> PromptTokenizer:
    if name == "InternLM2":
        write_internlm2(folder / name)
    else:
        write_llama_sentencepiece(folder / name, config={"legacy": name == "legacy Llama"})
    return PromptTokenizer.from_folder(folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(ids=IDS)
def test_answer_reads_as_sentencepiece_decodes_it(kind: str, folder: Path, ids: list[int]) -> None:
    ours, theirs = _both(kind, folder)
    # What transformers' tokenizers do: special tokens are taken out first.
    pieces = [i for i in ids if not (theirs.is_control(i) or theirs.is_unknown(i))]
    assert ours.decode(ids) == theirs.decode(pieces)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(text=st.sampled_from(corpus()[:300]))
def test_text_comes_back(kind: str, folder: Path, text: str) -> None:
    ours, theirs = _both(kind, folder)
    ids = ours.encode_text(text)
    if theirs.unk_id() not in ids:
        expected = " ".join(text.split(" ")) if kind != "blanks taken away" else None
        assert ours.decode(ids) == (expected or " ".join(text.split()))


CHECKPOINTS = ("Llama", "legacy Llama", "InternLM2")


@pytest.mark.parametrize("skip_special_tokens", [True, False])
@pytest.mark.parametrize("name", CHECKPOINTS)
@settings(max_examples=150, deadline=None)
@given(ids=st.lists(BYTES | st.integers(0, 639) | st.integers(630, 645), max_size=14))
@example(ids=[FIRST_BYTE + byte for byte in "a你".encode()] + [FIRST_BYTE + 0xE4])
def test_text_that_grows_is_the_text_of_all_ids(
    name: str, skip_special_tokens: bool, folder: Path, ids: list[int]
) -> None:
    tokenizer = _checkpoint(folder, name)
    answer = AnswerText(tokenizer, skip_special_tokens=skip_special_tokens)
    chunks = []
    for token_id in ids:
        answer.push(token_id)
        chunks.append(answer.take()[0])
        assert "\ufffd" not in chunks[-1][-1:]
    answer.finish()
    chunks.append(answer.take()[0])
    expected = tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
    assert "".join(chunks) == answer.text == expected


def test_character_of_several_tokens_is_shown_when_it_is_whole(folder: Path) -> None:
    answer = AnswerText(_checkpoint(folder, "Llama"))
    shown = []
    for byte in "é🙂".encode():
        answer.push(FIRST_BYTE + byte)
        shown.append(answer.take()[0])
    assert shown == ["", "é", "", "", "", "🙂"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # A blank before a special token; what follows it is a text of its own, without the first.
        ("InternLM2", "<s>the image <|im_end|><|im_start|>the"),
        ("legacy Llama", "<s>the image </s></s>the"),
        # One text: only the very first blank is the dummy one.
        ("Llama", "<s> the image</s></s> the"),
    ],
)
def test_special_tokens_stand_among_the_text_as_the_checkpoints_class_has_it(
    folder: Path, name: str, expected: str
) -> None:
    tokenizer = _checkpoint(folder, name)
    is_internlm2 = name == "InternLM2"
    end, start = ("<|im_end|>", "<|im_start|>") if is_internlm2 else ("</s>", "</s>")
    tokens = ["<s>", "▁the", "▁image", end, start, "▁the"]
    ids = [tokenizer.token_id(token) for token in tokens]
    assert None not in ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == expected
    assert tokenizer.decode(ids) == "the image the"


def test_id_that_is_not_known_has_no_text(folder: Path) -> None:
    tokenizer = _checkpoint(folder, "Llama")
    ids = [tokenizer.token_id("▁the"), 10_000, tokenizer.token_id("▁image")]
    assert tokenizer.decode(ids) == "the image"
