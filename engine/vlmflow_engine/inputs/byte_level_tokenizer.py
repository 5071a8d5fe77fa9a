"""Byte-level BPE from vocab.json and merges.txt, in the form of a tokenizer.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmflow_engine.errors import ModelError
from vlmflow_engine.inputs.added_tokens import AddedToken
from vlmflow_engine.json_file import read_object

# How Qwen2 cuts a text into words: contractions, letters with one sign before them, single digits,
# signs with the line ends behind them, line ends, blanks.
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")


def read_byte_level(
    folder: Path, config: Mapping[str, Any], added: Sequence[AddedToken]
) -> dict[str, Any]:
    """Return the content of a tokenizer.json.

    config  the content of tokenizer_config.json
    Raises ModelError.
    """
    name = config.get("tokenizer_class")
    if name not in _CLASSES:
        raise ModelError(
            f"{folder}: a vocab.json with a merges.txt is read for {_CLASSES[0]}, and its "
            f"tokenizer_config.json names {name!r}; a tokenizer.json would do for any"
        )
    vocabulary = _read_vocabulary(folder / "vocab.json", added)
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    words = {
        "type": "Split",
        "pattern": {"Regex": _QWEN2_WORDS},
        "behavior": "Isolated",
        "invert": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [token.as_json() for token in added],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [words, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": _read_merges(folder / "merges.txt", vocabulary),
        },
    }


def _read_vocabulary(path: Path, added: Sequence[AddedToken]) -> dict[str, int]:
    vocabulary = read_object(path)
    texts: dict[int, str] = {}
    for text, token_id in vocabulary.items():
        if type(token_id) is not int or token_id < 0:
            raise ModelError(f"{path}: {text!r} has the id {token_id!r}; a token's is a number")
        if texts.setdefault(token_id, text) != text:
            raise ModelError(f"{path}: {text!r} and {texts[token_id]!r} have one id, {token_id}")
    for token in added:
        if vocabulary.setdefault(token.content, token.id) != token.id or (
            texts.setdefault(token.id, token.content) != token.content
        ):
            raise ModelError(
                f"{path}: the added token {token.content!r} has the id {token.id}; here it has "
                f"the id {vocabulary[token.content]}, and {token.id} is that of {texts[token.id]!r}"
            )
    return vocabulary


def _read_merges(path: Path, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except ValueError as error:
        raise ModelError(f"{path}: not valid UTF-8: {error}") from error
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.rstrip("\r").partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise ModelError(
                f"{path}: line {number}, {line[:80]!r}, is no pair of tokens of vocab.json that "
                "make a third"
            )
        merges.append((left, right))
    return merges
