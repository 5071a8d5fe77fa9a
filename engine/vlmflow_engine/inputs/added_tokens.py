"""The tokens that a checkpoint adds to a vocabulary, from the files beside it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmflow_engine.errors import ModelError
from vlmflow_engine.json_file import read_object

# The names of tokenizer_config.json and special_tokens_map.json whose tokens are special.
_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that a text is split at before it is tokenised."""

    id: int
    content: str
    special: bool  # left out of an answer's text
    lstrip: bool = False  # takes the blanks before it along
    rstrip: bool = False  # and those behind it
    single_word: bool = False

    def as_json(self) -> dict[str, Any]:
        """An entry of a tokenizer.json's added_tokens."""
        return {
            "id": self.id,
            "content": self.content,
            "single_word": self.single_word,
            "lstrip": self.lstrip,
            "rstrip": self.rstrip,
            "normalized": False,
            "special": self.special,
        }


def read_added_tokens(folder: Path, config: Mapping[str, Any]) -> list[AddedToken]:
    """Read added_tokens_decoder of the config, and added_tokens.json. Raises ModelError.

    config  the content of tokenizer_config.json
    """
    named = read_special_names(folder, config)
    by_id: dict[int, AddedToken] = {}
    for source, token in (
        *_of_decoder(folder / "tokenizer_config.json", config.get("added_tokens_decoder")),
        *_of_map(folder / "added_tokens.json", named),
    ):
        known = by_id.setdefault(token.id, token)
        if known.content != token.content:
            raise ModelError(
                f"{source}: the id {token.id} is given to {token.content!r}, and to "
                f"{known.content!r} before it"
            )
    ids: dict[str, int] = {}
    for token in by_id.values():
        if ids.setdefault(token.content, token.id) != token.id:
            raise ModelError(
                f"{folder}: the added token {token.content!r} has two ids, "
                f"{ids[token.content]} and {token.id}"
            )
    return [by_id[token_id] for token_id in sorted(by_id)]


def read_special_names(folder: Path, config: Mapping[str, Any]) -> set[str]:
    """The tokens that the configs name as those of some role: bos_token, ... Raises ModelError."""
    path = folder / "special_tokens_map.json"
    names: set[str] = set()
    for content in (config, read_object(path) if path.is_file() else {}):
        for name in _NAMES:
            names |= _contents(content.get(f"{name}_token"))
        names |= _contents(content.get("additional_special_tokens"))
        names |= _contents(content.get("extra_special_tokens"))
    return names


def token_content(token: Any) -> str | None:
    """A token is stored as a text or as {'content': ...}; None if it is neither."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _contents(value: Any) -> set[str]:
    if isinstance(value, Mapping) and "content" not in value:  # by name, as image_token
        value = list(value.values())
    tokens = value if isinstance(value, list) else [value]
    return {content for token in tokens if (content := token_content(token))}


def _of_decoder(path: Path, entries: Any) -> Iterator[tuple[Path, AddedToken]]:
    if entries is None:
        return
    if not isinstance(entries, Mapping):
        raise ModelError(f"{path}: added_tokens_decoder is no JSON object")
    for token_id, entry in entries.items():
        content = token_content(entry)
        if content is None or not token_id.isdecimal():
            raise ModelError(
                f"{path}: added_tokens_decoder holds {token_id!r}, which is no id with a token"
            )
        flags = entry if isinstance(entry, Mapping) else {}
        yield (
            path,
            AddedToken(
                int(token_id),
                content,
                special=bool(flags.get("special")),
                lstrip=bool(flags.get("lstrip")),
                rstrip=bool(flags.get("rstrip")),
                single_word=bool(flags.get("single_word")),
            ),
        )


def _of_map(path: Path, special: set[str]) -> Iterator[tuple[Path, AddedToken]]:
    for content, token_id in (read_object(path) if path.is_file() else {}).items():
        if type(token_id) is not int or token_id < 0 or not content:
            raise ModelError(f"{path}: {content!r} has the id {token_id!r}; a token's is a number")
        yield path, AddedToken(token_id, content, special=content in special)
