"""Each text has the ids that sentencepiece gives it, whatever the model's settings."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.tiny_tokenizers import add_pieces, corpus, train_sentencepiece
from vlmflow_engine.errors import ModelError
from vlmflow_engine.inputs.tokenizer import PromptTokenizer

KINDS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "pieces across words": {
        "split_by_whitespace": False,
        "split_by_unicode_script": False,
        "split_by_number": False,
        "vocab_size": 900,
    },
    "user-defined pieces": {
        "user_defined_symbols": "<ud>,▁▁,▁▁▁▁,\n\n,xy,12,the",
        "vocab_size": 660,
    },
    "no dummy blank": {"add_dummy_prefix": False},
    "blanks taken away": {"remove_extra_whitespaces": True},
    "unknown pieces": {"byte_fallback": False, "vocab_size": 400},
    "normalised": {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
    "normalised, all blanks kept": {"normalization_rule_name": "nfkc"},
}
# What meets in a text in all ways.
WORDS = (
    "a b e t the 1 12 xy < > 0x0A <0x41> <ud> [ U ▁ é e\u0301 你 好世 🙂 👩\u200d👩 ﬁ Å ① ก็ \u200b "
    "\ufeff \ufffd \ud7ff \U0010ffff \x00 \x1b \u3000 \xa0"
)
BLANKS = [" ", "  ", "     ", "\t", "\n", "\n\n", "\r\n", " the", " image"]
_JOINED = re.compile("[^\0-\u02ff\u0370-\u058f\u3040-\u3096\u30a1-\u30fa\u4e00-\u9fff]")
TEXTS = (
    st.lists(st.sampled_from(WORDS.split(" ") + BLANKS), max_size=20).map("".join)
    | st.text(max_size=20)
    | st.sampled_from(corpus()[:200])
)


@cache
def _both(
    kind: str, folder: Path, legacy: bool = True
) -> tuple[PromptTokenizer, sentencepiece.SentencePieceProcessor]:
    raw = train_sentencepiece(**KINDS[kind])
    folder = folder / f"{kind} {legacy}"
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(raw)
    (folder / "tokenizer_config.json").write_text(json.dumps({"legacy": legacy}))
    return (
        PromptTokenizer.from_folder(folder),
        sentencepiece.SentencePieceProcessor(model_proto=raw),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
@example("")
@example(" ")
@example(" ▁ a ▁ ")
@example("a\n b\n\n c \t")
@example("abab<ud>xyxy<ud> 1212  the")
def test_text_has_the_ids_of_sentencepiece(
    kind: str, legacy: bool, folder: Path, text: str
) -> None:
    ours, theirs = _both(kind, folder, legacy)
    assume(not any(token in text for token in ours.special_tokens))
    # A text between two user-defined pieces that spells a byte is that byte: sentencepiece, which
    # has no such rule, is not to be asked.
    assume(kind != "user-defined pieces" or "<0x" not in text)
    # tokenizers applies rules of normalisation to a character with all its accents and joiners.
    assume(not kind.startswith("normalised") or not _JOINED.search(text))
    assert ours.encode_text(text) == theirs.encode(text)


def test_every_text_of_two_letters_is_put_together_as_sentencepiece_does(tmp_path: Path) -> None:
    """Where pieces overlap, the order of the merges decides."""
    sentences = [f"{number:0{size}b}" for size in range(2, 10) for number in range(1 << size)]
    texts = [text.translate({48: "a", 49: "b"}) for text in sentences]
    model = tmp_path / "tokenizer.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(model.with_suffix("")),
        vocab_size=60,
        model_type="bpe",
        normalization_rule_name="identity",
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ours = PromptTokenizer.from_folder(tmp_path)
    assert [ours.encode_text(text) for text in texts] == theirs.encode(texts)


def test_byte_that_pieces_of_a_text_would_spell_is_none(tmp_path: Path) -> None:
    raw = add_pieces(train_sentencepiece(), ["<", ">", "0", "x", "<0", "x4", "1>", "<0x4"], kind=1)
    (tmp_path / "tokenizer.model").write_bytes(raw)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=raw)
    assert theirs.encode("<0x41>", out_type=str)[-2:] == ["<0x4", "1>"]
    ours = PromptTokenizer.from_folder(tmp_path)
    assert ours.encode_text("<0x41>") == theirs.encode("<0x41>")


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_pieces_are_sentencepieces(kind: str, folder: Path) -> None:
    ours, theirs = _both(kind, folder)
    pieces = [theirs.id_to_piece(i) for i in range(theirs.get_piece_size())]
    assert ours.num_ids == len(pieces)
    assert [ours.token(i) for i in range(len(pieces))] == pieces
    assert [ours.token_id(piece) for piece in pieces] == list(range(len(pieces)))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_type": "unigram", "vocab_size": 400}, "UNIGRAM model.*BPE is supported"),
        ({"model_type": "char", "vocab_size": 330, "hard_vocab_limit": False}, "CHAR model"),
        ({"treat_whitespace_as_suffix": True}, "blank at its end"),
    ],
    ids=repr,
)
def test_model_of_another_kind_is_refused(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece(**options))
    with pytest.raises(ModelError, match=rf"tokenizer\.model: .*{reason}"):
        PromptTokenizer.from_folder(tmp_path)


def test_model_with_pieces_out_of_use_is_refused(tmp_path: Path) -> None:
    raw = add_pieces(train_sentencepiece(), ["old", "older"], kind=5)
    (tmp_path / "tokenizer.model").write_bytes(raw)
    with pytest.raises(ModelError, match="2 of its pieces, 'old' the first, are marked as unused"):
        PromptTokenizer.from_folder(tmp_path)
