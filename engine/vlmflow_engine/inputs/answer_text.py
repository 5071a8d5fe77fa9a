"""From generated tokens to text, one by one: never half a character, never half a stop word."""

from bisect import bisect_left
from collections.abc import Sequence

from vlmflow_engine.inputs.tokenizer import PromptTokenizer

_REPLACEMENT = "\ufffd"  # what a decoder shows for bytes that are no character, or not yet one


class AnswerText:
    """The text of one answer while it grows.

    A stop word ends it wherever its letters come from, also across tokens. What may yet become one,
    and bytes that may yet become a character, are held back.
    """

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        *,
        skip_special_tokens: bool = True,
        stop_words: Sequence[str] = (),
        include_stop_word: bool = False,
        min_new_tokens: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._stop_words = tuple(stop_words)
        self._include_stop_word = include_stop_word
        self._min_new_tokens = min_new_tokens  # no stop word counts before
        self._ids: list[int] = []
        self._ends: list[int] = []  # length of the text once each token is decoded
        # Decoded together: a token's text may depend on the one before it.
        self._window = 0  # first token of the window
        self._decoded = 0  # tokens whose text is in `text`
        self._searched = 0  # characters in which no stop word can begin any more
        self._num_taken_characters = 0
        self._num_taken_ids = 0
        self.text = ""  # as far as characters are whole
        self.is_stopped = False
        self._is_finished = False

    def push(self, token_id: int) -> None:
        """Take the next token. After `is_stopped` no further one may come."""
        self._ids.append(token_id)
        new = self._new_text()
        if new and not new.endswith(_REPLACEMENT):
            self._add(new)
            self._window, self._decoded = self._decoded, len(self._ids)
            self._seek_stop_word()

    def finish(self) -> None:
        """No further token comes: give out what was held back."""
        self._is_finished = True
        if self.is_stopped:
            return
        self._add(self._new_text())
        self._seek_stop_word()

    def take(self) -> tuple[str, list[int]]:
        """Return what is safe to show and was not taken yet: text, and the tokens behind it."""
        start, end = self._num_taken_characters, self._num_safe
        if start == end:
            return "", []
        first, last = self._num_taken_ids, self._num_tokens_of(end)
        self._num_taken_characters, self._num_taken_ids = end, last
        return self.text[start:end], self._ids[first:last]

    @property
    def token_ids(self) -> list[int]:
        """The tokens that the text is made of; those of a stop word that was cut off are not."""
        return self._ids[: self._num_tokens_of(len(self.text))]

    @property
    def _num_safe(self) -> int:
        """Characters that nothing to come can take back."""
        return len(self.text) if self.is_stopped or self._is_finished else self._searched

    def _num_tokens_of(self, num_characters: int) -> int:
        """How many tokens begin within so many characters; all of them once none is to come."""
        if self._is_finished and not self.is_stopped:
            return len(self._ids)
        starts = (0, *self._ends)
        return bisect_left(starts, num_characters, hi=len(self._ends))

    def _add(self, new: str) -> None:
        """Add what the tokens without an end so far stand for; all of them begin before it."""
        num_tokens = len(self._ids) - len(self._ends)
        self._ends += [len(self.text)] * num_tokens
        self.text += new
        if num_tokens:
            self._ends[-1] = len(self.text)

    def _new_text(self) -> str:
        before = self._decode(self._ids[self._window : self._decoded])
        return self._decode(self._ids[self._window :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)

    def _seek_stop_word(self) -> None:
        if len(self._ids) < self._min_new_tokens or not self._stop_words:
            self._searched = len(self.text)
            return
        found = [
            (place + len(word), place, word)  # the first to be complete
            for word in self._stop_words
            if (place := self.text.find(word, self._searched)) >= 0
        ]
        if found:
            _, place, word = min(found)
            self.text = self.text[: place + len(word) * self._include_stop_word]
            self.is_stopped = True
            return
        self._searched = len(self.text) - max(
            (
                length
                for word in self._stop_words
                for length in range(1, min(len(word), len(self.text) - self._searched + 1))
                if self.text.endswith(word[:length])
            ),
            default=0,
        )
