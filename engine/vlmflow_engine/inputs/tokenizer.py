"""Text to token ids and back, by the checkpoint's tokenizer."""

import json
import re
from copy import copy
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
        self._tokenizer = Tokenizer.from_str(serialised)  # complains of what is no tokenizer
        self.serialised = serialised
        self._decoder = decoder
        self._placeholder: tuple[str, int] | None = None  # see with_placeholder
        self._content = json.loads(serialised)
        if self._content.get("truncation") or self._content.get("padding"):
            self._content["truncation"] = self._content["padding"] = None
            self._tokenizer = Tokenizer.from_str(json.dumps(self._content))
        # A run of blanks with a token of its own is text, whoever writes it.
        self._special_ids: dict[str, int] = {
            token["content"]: token["id"]
            for token in self._content.get("added_tokens") or []
            if token["special"] or not token["content"].isspace()
        }
        self._names = sorted(self._special_ids, key=len, reverse=True)
        self.special_tokens = self._names
        pattern = "|".join(re.escape(token) for token in self._names)
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
            raise ModelError(f"{content.path}: not valid JSON: {error}") from error
        except Exception as error:  # what tokenizers raises has no class of its own
            raise ModelError(f"{content.path}: cannot be read as a tokenizer: {error}") from error

    def with_placeholder(self, token: str, token_id: int | None = None) -> "PromptTokenizer":
        """Return a tokenizer with a special token that the vocabulary need not know.

        A prompt is cut at it, and each part tokenised by itself, as the original LLaVA does at its
        <image>.

        token_id  stands for it among the ids; None: that of the unknown token, which has a row in
                  every embedding, where bytes spell all text, else one past the vocabulary
        """
        if token_id is None:
            unknown = self._unknown_id() if self._content["model"].get("byte_fallback") else None
            token_id = self._num_ids if unknown is None else unknown
        other = copy(self)
        other._placeholder = token, token_id
        other.special_tokens = sorted({*self._names, token}, key=len, reverse=True)
        return other

    def token_id(self, token: str) -> int | None:
        if self._placeholder is not None and token == self._placeholder[0]:
            return self._placeholder[1]
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def token(self, token_id: int) -> str | None:
        """The token of an id; None if there is none."""
        if self._placeholder is not None and token_id == self._placeholder[1]:
            return self._placeholder[0]
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
        ids = [] if has_beginning else list(self.beginning)
        if self._placeholder is None:
            return ids + self._encode_part(text, spelled)
        token, token_id = self._placeholder
        first, *others = text.split(token)
        ids += self._encode_part(first, spelled)
        for part in others:
            ids += [token_id, *self._encode_part(part, spelled)]
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

    def _encode_part(self, text: str, spelled: SpelledTokens) -> list[int]:
        """Encode what holds no placeholder, without a beginning."""
        written = [self._special_ids[found[0]] for found in self._pattern.finditer(text)]
        if not spelled.is_hiding_in(text):
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
            # A normaliser may turn plain text into a token: "<TOOL>", or one in wide characters.
            if self._special_in(ids) == self._special_in(written):
                return ids
        ids = self._encode_renamed(text, spelled)
        if self._special_in(ids) != self._special_in(written):
            raise InvalidRequestError("the tokenizer makes a special token of plain text")
        return ids

    def _special_in(self, ids: list[int]) -> list[int]:
        return [token_id for token_id in ids if token_id in self._written_ids]

    def _encode_renamed(self, text: str, spelled: SpelledTokens) -> list[int]:
        """Give the template's tokens names that no text has: what looks like one is text then."""
        count = len(self._names)
        base = next(
            base
            for base in range(0x100000, 0x10FFFE - count, count or 1)
            if not any(chr(base + index) in text for index in range(count))
        )
        names = {token: chr(base + index) for index, token in enumerate(self._names)}
        text = spelled.show(self._pattern.sub(lambda found: names[found[0]], text))
        tokenizer, ids_by_name = self._renamed(base)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return [ids_by_name.get(token_id, token_id) for token_id in ids]

    def _rename(self, base: int) -> tuple[Tokenizer, dict[int, int]]:
        """A copy whose special tokens are called chr(base), chr(base + 1), ..., and their ids."""
        names = {token: chr(base + index) for index, token in enumerate(self._names)}
        tokens = self._content.get("added_tokens") or []
        added = [
            {**token, "content": names[token["content"]], "normalized": False}
            if token["content"] in names
            else token
            for token in tokens
        ]
        renamer = Tokenizer.from_str(
            json.dumps({**self._content, "added_tokens": added, "post_processor": None})
        )
        # What is not in the vocabulary is numbered anew, in a copy.
        ids: dict[int, int] = {
            int(renamer.token_to_id(renamed["content"]) or 0): token["id"]
            for token, renamed in zip(tokens, added, strict=True)
        }
        return renamer, ids

    def _unknown_id(self) -> int | None:
        model = self._content["model"]
        if "unk_id" in model:  # Unigram
            unknown_id: int | None = model["unk_id"]
            return unknown_id
        return self.token_id(model["unk_token"]) if model.get("unk_token") else None
