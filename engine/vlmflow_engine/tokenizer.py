"""`Tokenizer`: a checkpoint's tokenizer by itself, with LMDeploy's methods."""

import os
from collections.abc import Sequence
from pathlib import Path

from vlmflow_engine.checks import check_at_least, check_type
from vlmflow_engine.errors import ModelError
from vlmflow_engine.inputs.tokenizer import PromptTokenizer


class Tokenizer:
    """A checkpoint's tokenizer: text to token ids and back.

    Special tokens that a text spells are special here; in a prompt they are plain text.
    """

    def __init__(self, model_path: str | os.PathLike[str]) -> None:
        """Read a checkpoint folder's tokenizer, of any form. Raises ModelError, ConfigError."""
        check_type("model_path", model_path, str, os.PathLike)
        folder = Path(model_path)
        if not folder.is_dir():
            raise ModelError(
                f"{str(model_path)!r} is not a folder; a model of the hub is downloaded by "
                "pipeline(), or by `hf download`"
            )
        self._tokenizer = PromptTokenizer.from_folder(folder)

    @property
    def vocab_size(self) -> int:
        """Entries, added tokens included."""
        return self._tokenizer.num_ids

    def encode(self, text: str, add_bos: bool = True, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text.

        add_bos, add_special_tokens  False, either: without what the tokenizer puts before a text

        Raises ConfigError for what is no text.
        """
        check_type("text", text, str)
        ids = self._tokenizer.encode_text(text)
        return self._tokenizer.beginning + ids if add_bos and add_special_tokens else ids

    def decode(
        self, ids: Sequence[int], offset: int | None = None, skip_special_tokens: bool = True
    ) -> str:
        """Return the text of token ids.

        offset               position of the first that counts; None: all
        skip_special_tokens  leave special tokens out

        An id that the tokenizer does not know has no text. Raises ConfigError for what is no id.
        """
        wanted = list(ids)[offset or 0 :]
        for token_id in wanted:
            check_at_least("a token id", token_id, 0)
        return self._tokenizer.decode(wanted, skip_special_tokens=skip_special_tokens)
