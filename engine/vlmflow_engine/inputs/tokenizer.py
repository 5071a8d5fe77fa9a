"""Text to token ids and back, by the checkpoint's tokenizer."""

import json
import re
from functools import cache, cached_property, lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from vlmflow_engine.errors import InvalidRequestError, ModelError
from vlmflow_engine.inputs.sentencepiece_decoder import PieceDecoder
from vlmflow_engine.inputs.spelled_tokens import SpelledTokens
from vlmflow_engine.inputs.tokenizer_files import read_tokenizer


class PromptTokenizer:
    """Encodes rendered prompts and decodes answers. Safe to use from several threads."""

    def __init__(self, serialised: str, decoder: PieceDecoder | None = None) -> None:
        """
        serialised  content of a tokenizer.json
        decoder     decodes in its stead
        """
        Tokenizer.from_str(serialised)  # complains of what is no tokenizer
        self.serialised = serialised
        self._decoder = decoder
        self._content = json.loads(serialised)
        self._content["truncation"] = self._content["padding"] = None
        self._tokenizer = Tokenizer.from_str(json.dumps(self._content))
        # A run of blanks with a token of its own is text, whoever writes it.
        self._special_ids: dict[str, int] = {
            token["content"]: token["id"]
            for token in self._content.get("added_tokens") or []
            if token["special"] or not token["content"].isspace()
        }
        self.special_tokens = sorted(self._special_ids, key=len, reverse=True)
        pattern = "|".join(re.escape(token) for token in self.special_tokens)
        self._pattern = re.compile(pattern or "(?!)")
        self.beginning: list[int] = self._tokenizer.encode("", add_special_tokens=True).ids
        # Plain text may hold what no token spells; all other special ids have to be written.
        self._written_ids = set(self._special_ids.values()) - {self._unknown_id()}
        self._renamed = cache(self._rename)
        self._num_ids = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.ids_containing = lru_cache(maxsize=1024)(self._ids_containing)

    @classmethod
    def from_folder(cls, folder: Path) -> "PromptTokenizer":
        """Read a checkpoint's tokenizer (see `inputs.tokenizer_files`). Raises ModelError."""
        content = read_tokenizer(folder)
        try:
            return cls(content.serialised, content.decoder)
        except ValueError as error:
            raise ModelError(f"{folder}/tokenizer.json: not valid JSON: {error}") from error
        except Exception as error:  # what tokenizers raises has no class of its own
            raise ModelError(f"{folder}: cannot be read as a tokenizer: {error}") from error

    def token_id(self, token: str) -> int | None:
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def token(self, token_id: int) -> str | None:
        """The token of an id; None if there is none."""
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token

    @property
    def num_ids(self) -> int:
        """One more than the largest id."""
        return self._num_ids

    def encode_prompt(self, text: str, spelled: SpelledTokens) -> list[int]:
        """Encode a rendered prompt; special tokens count only where the template wrote them.

        Raises InvalidRequestError if the vocabulary makes one of plain text all the same.
        """
        has_beginning = not self.beginning or text.startswith(
            self._tokenizer.decode(self.beginning, skip_special_tokens=False)
        )
        beginning = [] if has_beginning else self.beginning
        written = [self._special_ids[found[0]] for found in self._pattern.finditer(text)]
        if not spelled.is_hiding_in(text):
            ids: list[int] = beginning + self._tokenizer.encode(text, add_special_tokens=False).ids
            # A normaliser may turn plain text into a token: "<TOOL>", or one in wide characters.
            if self._special_in(ids) == self._special_in(beginning + written):
                return ids
        ids = beginning + self._encode_renamed(text, spelled)
        if self._special_in(ids) != self._special_in(beginning + written):
            raise InvalidRequestError("the tokenizer makes a special token of plain text")
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Encode text by itself; a special token that it spells is one."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        if self._decoder is not None:
            return self._decoder.decode(token_ids, skip_special_tokens=skip_special_tokens)
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    @cached_property
    def _token_texts(self) -> dict[int, str]:
        """The text of each token inside an answer, by id."""
        # A first token may lose its leading blank, so each is decoded behind another.
        before = self.encode_text("a")[-1:]
        lead = self._tokenizer.decode(before, skip_special_tokens=False)
        ids = sorted(self._tokenizer.get_vocab(with_added_tokens=True).values())
        texts = self._tokenizer.decode_batch(
            [[*before, token_id] for token_id in ids], skip_special_tokens=False
        )
        return {i: text.removeprefix(lead) for i, text in zip(ids, texts, strict=True)}

    def _ids_containing(self, text: str) -> tuple[int, ...]:
        """The tokens whose own text contains this one."""
        return tuple(i for i, piece in self._token_texts.items() if text in piece)

    def _special_in(self, ids: list[int]) -> list[int]:
        return [token_id for token_id in ids if token_id in self._written_ids]

    def _encode_renamed(self, text: str, spelled: SpelledTokens) -> list[int]:
        """Give the template's tokens names that no text has: what looks like one is text then."""
        count = len(self.special_tokens)
        base = next(
            base
            for base in range(0x100000, 0x10FFFE - count, count or 1)
            if not any(chr(base + index) in text for index in range(count))
        )
        names = {token: chr(base + index) for index, token in enumerate(self.special_tokens)}
        text = spelled.show(self._pattern.sub(lambda found: names[found[0]], text))
        tokenizer, ids_by_name = self._renamed(base)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return [ids_by_name.get(token_id, token_id) for token_id in ids]

    def _rename(self, base: int) -> tuple[Tokenizer, dict[int, int]]:
        """A copy whose special tokens are called chr(base), chr(base + 1), ..., and their ids."""
        names = {token: chr(base + index) for index, token in enumerate(self.special_tokens)}
        tokens = self._content.get("added_tokens") or []
        added = [
            {**token, "content": names[token["content"]], "normalized": False}
            if token["content"] in names
            else token
            for token in tokens
        ]
        copy = Tokenizer.from_str(
            json.dumps({**self._content, "added_tokens": added, "post_processor": None})
        )
        # What is not in the vocabulary is numbered anew, in a copy.
        ids: dict[int, int] = {
            int(copy.token_to_id(renamed["content"]) or 0): token["id"]
            for token, renamed in zip(tokens, added, strict=True)
        }
        return copy, ids

    def _unknown_id(self) -> int | None:
        model = self._content["model"]
        if "unk_id" in model:  # Unigram
            unknown_id: int | None = model["unk_id"]
            return unknown_id
        return self.token_id(model["unk_token"]) if model.get("unk_token") else None
