"""A tokenizer.model is read as sentencepiece reads it, and what is none is the model's fault."""

from pathlib import Path

import pytest
import sentencepiece

from tests.tiny_tokenizers import train_sentencepiece
from vlmflow_engine.errors import ModelError
from vlmflow_engine.inputs.sentencepiece_model import ModelType, PieceType, SentencePieceModel


def _read(folder: Path, raw: bytes) -> SentencePieceModel:
    path = folder / "tokenizer.model"
    path.write_bytes(raw)
    return SentencePieceModel.from_file(path)


def test_pieces_are_those_that_sentencepiece_finds(tmp_path: Path) -> None:
    raw = train_sentencepiece(user_defined_symbols="<ud>,▁▁", control_symbols="<ctl>")
    theirs, ours = sentencepiece.SentencePieceProcessor(model_proto=raw), _read(tmp_path, raw)
    ids = range(theirs.get_piece_size())
    assert [piece.text for piece in ours.pieces] == [theirs.id_to_piece(i) for i in ids]
    assert [piece.score for piece in ours.pieces] == [theirs.get_score(i) for i in ids]
    for kind, is_of_kind in (
        (PieceType.UNKNOWN, theirs.is_unknown),
        (PieceType.CONTROL, theirs.is_control),
        (PieceType.BYTE, theirs.is_byte),
        (PieceType.UNUSED, theirs.is_unused),
    ):
        assert [piece.type is kind for piece in ours.pieces] == [is_of_kind(i) for i in ids]
    assert [p.text for p in ours.pieces if p.type is PieceType.USER_DEFINED] == ["<ud>", "▁▁"]
    assert ours.unknown_id == theirs.unk_id()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"model_type": ModelType.BPE, "byte_fallback": True, "charsmap": b""}),
        ({"model_type": "unigram", "vocab_size": 400}, {"model_type": ModelType.UNIGRAM}),
        ({"byte_fallback": False, "vocab_size": 400}, {"byte_fallback": False}),
        ({"add_dummy_prefix": False}, {"add_dummy_prefix": False}),
        ({"remove_extra_whitespaces": True}, {"remove_extra_whitespaces": True}),
        ({}, {"remove_extra_whitespaces": False, "add_dummy_prefix": True}),
        ({"treat_whitespace_as_suffix": True}, {"blank_is_suffix": True}),
        ({"bos_piece": "<begin>"}, {"beginning": "<begin>"}),
    ],
    ids=repr,
)
def test_settings_are_those_of_the_training(
    tmp_path: Path, options: dict[str, object], expected: dict[str, object]
) -> None:
    model = _read(tmp_path, train_sentencepiece(**options))
    assert {name: getattr(model, name) for name in expected} == expected


def test_rules_of_normalisation_are_read(tmp_path: Path) -> None:
    assert _read(tmp_path, train_sentencepiece(normalization_rule_name="nfkc")).charsmap


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "no pieces"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "wire type"),
        (b"\x00\x01", "number 0"),
        (b"\x0a\x05\x0a", "middle of a field"),
        (b"\x0a\x80", "middle of a number"),
        (b"\x0a" + b"\xff" * 10, "ten bytes"),
        (b"\x08\x01", "no message"),
        (b"\x0a\x05\x0a\x03\xff\xfe\xfd", "utf-8"),
        (b"\x0a\x04\x12\x02ab", "wire type|no float"),
        (b"\x0a\x03\x0a\x01a", "0 of its pieces"),
        (b"\x0a\x05\x0a\x01a\x18\x09", "PieceType"),
    ],
    ids=repr,
)
def test_file_that_is_no_model_is_the_models_fault(tmp_path: Path, raw: bytes, reason: str) -> None:
    with pytest.raises(ModelError, match=rf"tokenizer\.model: cannot be read.*({reason})"):
        _read(tmp_path, raw)


def test_model_that_was_cut_off_is_never_read_as_a_whole_one(tmp_path: Path) -> None:
    raw = train_sentencepiece()
    whole = _read(tmp_path, raw)
    for size in range(1, len(raw), 97):
        try:
            assert _read(tmp_path, raw[:size]) != whole
        except ModelError as error:
            assert "tokenizer.model" in str(error)
