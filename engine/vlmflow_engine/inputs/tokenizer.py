"""Text to token ids and back, by the checkpoint's tokenizer.json."""

import json
import re
from pathlib import Path

from tokenizers import Tokenizer

from vlmflow_engine.errors import ModelError
from vlmflow_engine.inputs.chat_template import SpelledTokens


class PromptTokenizer:
    """Encodes rendered prompts and decodes answers. Safe to use from several threads."""

    def __init__(self, serialised: str) -> None:
        """`serialised` is the content of a tokenizer.json."""
        self._tokenizer = Tokenizer.from_str(serialised)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        content = json.loads(serialised)
        self._special_ids: dict[str, int] = {
            token["content"]: token["id"] for token in content.get("added_tokens") or []
        }
        self.special_tokens = sorted(self._special_ids, key=len, reverse=True)
        # The same tokenizer without a special token: whatever it is given is plain text.
        content["added_tokens"] = []
        content["post_processor"] = None
        self._plain = Tokenizer.from_str(json.dumps(content))
        self._beginning: list[int] = self._tokenizer.encode("", add_special_tokens=True).ids

    @classmethod
    def from_folder(cls, folder: Path) -> "PromptTokenizer":
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"{folder}: no tokenizer.json; other tokenizers are not supported yet")
        try:
            return cls(path.read_text())
        except ValueError as error:
            raise ModelError(f"{path}: not valid JSON: {error}") from error
        except Exception as error:  # what tokenizers raises has no class of its own
            raise ModelError(f"{path}: cannot be read as a tokenizer: {error}") from error

    def token_id(self, token: str) -> int | None:
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def encode_prompt(self, text: str, spelled: SpelledTokens) -> list[int]:
        """Encode a rendered prompt; special tokens count only where the template wrote them."""
        has_beginning = not self._beginning or text.startswith(
            self._tokenizer.decode(self._beginning, skip_special_tokens=False)
        )
        if not spelled:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=not has_beginning).ids
            return ids
        ids = [] if has_beginning else list(self._beginning)
        pattern = "|".join(re.escape(token) for token in self.special_tokens)
        for piece in re.split(f"({pattern})", text):
            if piece in self._special_ids:
                ids.append(self._special_ids[piece])
            elif piece:
                ids += self._plain.encode(spelled.show(piece), add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text
