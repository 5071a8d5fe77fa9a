"""Which of a checkpoint's files its tokenizer is read from, in this order:

    tokenizer.json            as it is
    tokenizer.model           SentencePiece: Llama, Vicuna, Mistral, InternLM2, Phi-3
    vocab.json + merges.txt   byte-level BPE: Qwen2

To the latter two belong the tokens that tokenizer_config.json (added_tokens_decoder) and
added_tokens.json add, and what the config says of the token a prompt begins with. All are brought
into the form of a tokenizer.json.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmflow_engine.errors import ModelError
from vlmflow_engine.inputs.added_tokens import (
    AddedToken,
    read_added_tokens,
    read_special_names,
    token_content,
)
from vlmflow_engine.inputs.byte_level_tokenizer import read_byte_level
from vlmflow_engine.inputs.sentencepiece_decoder import PieceDecoder
from vlmflow_engine.inputs.sentencepiece_model import PieceType, SentencePieceModel
from vlmflow_engine.inputs.sentencepiece_tokenizer import ChunkRules, to_tokenizer_json
from vlmflow_engine.json_file import read_object

_SENTENCEPIECE = "tokenizer.model"


@dataclass(frozen=True, slots=True)
class TokenizerContent:
    """A tokenizer, whichever files it came from."""

    path: Path  # where it comes from
    serialised: str  # in the form of a tokenizer.json
    decoder: PieceDecoder | None = None  # where tokenizers' own would differ from SentencePiece


def read_tokenizer(folder: Path) -> TokenizerContent:
    """Read the tokenizer of a checkpoint. Raises ModelError."""
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            return TokenizerContent(path, path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{path}: not valid UTF-8: {error}") from error
    config_path = folder / "tokenizer_config.json"
    config = read_object(config_path) if config_path.is_file() else {}
    if (folder / _SENTENCEPIECE).is_file():
        return _read_sentencepiece(folder, config)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        content = read_byte_level(folder, config, read_added_tokens(folder, config))
        return TokenizerContent(folder / "vocab.json", json.dumps(content))
    raise ModelError(
        f"{folder}: no tokenizer; it would be a tokenizer.json, a tokenizer.model, or a vocab.json "
        "with a merges.txt"
    )


def _read_sentencepiece(folder: Path, config: Mapping[str, Any]) -> TokenizerContent:
    path = folder / _SENTENCEPIECE
    model = SentencePieceModel.from_file(path)
    added = _with_own_tokens(model, read_added_tokens(folder, config), folder, config)
    # As the authors' classes have it: all but LLaMA's, told not to, take each chunk for a text. (No
    # checkpoint is known of that kind whose blanks are taken away; this rule leaves it its first.)
    is_legacy = config.get("legacy") is not False or model.remove_extra_whitespaces
    known = {token.content for token in added}
    beginning = token_content(config.get("bos_token")) or model.beginning
    rules = ChunkRules(
        beginning=beginning if beginning in known and config.get("add_bos_token", True) else None,
        is_prefix_everywhere=is_legacy,
    )
    try:
        content = to_tokenizer_json(model, added, rules)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    decoder = PieceDecoder(model, added, is_group_apart=is_legacy)
    return TokenizerContent(path, json.dumps(content), decoder)


def _with_own_tokens(
    model: SentencePieceModel,
    added: list[AddedToken],
    folder: Path,
    config: Mapping[str, Any],
) -> list[AddedToken]:
    """Add the model's own special tokens: <s>, </s>, and pieces that the configs call special."""
    names = read_special_names(folder, config)
    taken = {token.id for token in added}
    contents = {token.content for token in added}
    own = [
        AddedToken(index, piece.text, special=True)
        for index, piece in enumerate(model.pieces)
        if index not in taken
        and piece.text not in contents
        and (piece.type in (PieceType.CONTROL, PieceType.UNKNOWN) or piece.text in names)
    ]
    return sorted((*added, *own), key=lambda token: token.id)
