"""A SentencePiece model and its added tokens in the form of a tokenizer.json.

SentencePiece puts together whichever two neighbours make the piece with the highest score; a list
of merges says the same, if it names every pair of pieces that make a piece, best score first.
"""

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vlmflow_engine.errors import ModelError
from vlmflow_engine.inputs.added_tokens import AddedToken
from vlmflow_engine.inputs.sentencepiece_model import (
    BLANK,
    ModelType,
    PieceType,
    SentencePieceModel,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRules:
    """What a checkpoint's tokenizer does around SentencePiece."""

    beginning: str | None  # the token before a prompt
    # Whether what follows an added token is a text of its own, with a blank before it.
    is_prefix_everywhere: bool = True


def to_tokenizer_json(
    model: SentencePieceModel, added: Sequence[AddedToken], rules: ChunkRules
) -> dict[str, Any]:
    """Return the content of a tokenizer.json that encodes as SentencePiece does.

    added  all tokens that a text is split at, those of the model too
    Raises ModelError for a kind of model that is not supported, or a token that clashes.
    """
    _check(model)
    vocabulary = _vocabulary(model, added)
    user_defined = [
        piece.text
        for index, piece in enumerate(model.pieces)
        if piece.type is PieceType.USER_DEFINED and vocabulary.get(piece.text) == index
    ]
    unknown = next(text for text, index in vocabulary.items() if index == model.unknown_id)
    ids = {token.content: token.id for token in added}
    beginning = rules.beginning
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [token.as_json() for token in added],
        "normalizer": _normalizer(model, rules),
        "pre_tokenizer": _pre_tokenizer(model, user_defined, rules),
        "post_processor": None if beginning is None else begin_with(beginning, ids[beginning]),
        "decoder": _decoder(model),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": model.byte_fallback,
            # A piece that users defined stands by itself, and is no merge of others.
            "ignore_merges": bool(user_defined),
            "vocab": vocabulary,
            "merges": _merges(model, vocabulary),
        },
    }


def begin_with(token: str, token_id: int) -> dict[str, Any]:
    """The post-processor that puts a token before a text."""
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            first,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def _check(model: SentencePieceModel) -> None:
    if model.model_type is not ModelType.BPE:
        raise ModelError(
            f"it is a {model.model_type.name} model; of SentencePiece's, BPE is supported"
        )
    if model.blank_is_suffix:
        raise ModelError("it puts a word's blank at its end, which is not supported")
    unused = [piece.text for piece in model.pieces if piece.type is PieceType.UNUSED]
    if unused:
        raise ModelError(
            f"{len(unused)} of its pieces, {unused[0]!r} the first, are marked as unused, which is "
            "not supported"
        )


def _vocabulary(model: SentencePieceModel, added: Iterable[AddedToken]) -> dict[str, int]:
    """Ids by token; an added token may take the place of a piece that has no use."""
    texts = dict(enumerate(piece.text for piece in model.pieces))
    for token in added:
        if token.id < len(model.pieces) and texts[token.id] != token.content:
            piece = model.pieces[token.id]
            is_free = piece.type is PieceType.USER_DEFINED or "unused" in piece.text.lower()
            if not is_free:
                raise ModelError(
                    f"the added token {token.content!r} has the id {token.id}, which is that of "
                    f"the piece {piece.text!r}"
                )
        texts[token.id] = token.content
    vocabulary: dict[str, int] = {}
    for token_id, text in texts.items():
        if vocabulary.setdefault(text, token_id) != token_id:
            raise ModelError(
                f"{text!r} has two ids, {vocabulary[text]} and {token_id}: it is a piece of the "
                "vocabulary and an added token, or a piece twice"
            )
    return vocabulary


def _merges(model: SentencePieceModel, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that make a piece: by score, then as they come in the vocabulary."""
    scores = {
        piece.text: piece.score
        for index, piece in enumerate(model.pieces)
        if piece.type is PieceType.NORMAL and vocabulary.get(piece.text) == index
    }
    merges: list[tuple[str, str]] = []
    for text in sorted(scores, key=lambda text: -scores[text]):
        for place in range(1, len(text)):
            if (left := text[:place]) in scores and (right := text[place:]) in scores:
                merges.append((left, right))
    return merges


def _normalizer(model: SentencePieceModel, rules: ChunkRules) -> dict[str, Any] | None:
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        # Exact but for what follows a character that the rules replace: an accent behind a ligature
        # is lost. (The models that are known to come without a tokenizer.json have no rules.)
        rules_of_model = base64.b64encode(model.charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": rules_of_model})
    if model.remove_extra_whitespaces:
        at_end = f"[ {BLANK}]" if model.escape_whitespaces else " "
        steps += [
            _replace(r"\A +", ""),
            _replace(rf"{at_end}+\z", ""),
            _replace(" {2,}", " "),
        ]
    if model.add_dummy_prefix and rules.is_prefix_everywhere:
        steps.append({"type": "Prepend", "prepend": " "})
    if model.escape_whitespaces:
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": BLANK})
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _replace(regex: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": regex}, "content": content}


def _pre_tokenizer(
    model: SentencePieceModel, user_defined: Iterable[str], rules: ChunkRules
) -> dict[str, Any] | None:
    steps: list[dict[str, Any]] = []
    if model.add_dummy_prefix and not rules.is_prefix_everywhere:
        # No blank is left by now, so that none keeps the first from being put in; the second step
        # then writes it as the model does.
        steps.append(_metaspace(" ", "first"))
        if model.escape_whitespaces:
            steps.append(_metaspace(BLANK, "never"))
    longest_first = sorted(user_defined, key=len, reverse=True)
    if longest_first:
        pattern = "|".join(map(re.escape, longest_first))
        steps.append(
            {
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": False,
            }
        )
    return {"type": "Sequence", "pretokenizers": steps} if steps else None


def _metaspace(replacement: str, prepend_scheme: str) -> dict[str, Any]:
    return {
        "type": "Metaspace",
        "replacement": replacement,
        "prepend_scheme": prepend_scheme,
        "split": False,
    }


def _decoder(model: SentencePieceModel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if model.add_dummy_prefix or model.remove_extra_whitespaces:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
