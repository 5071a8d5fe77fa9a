"""What a caller writes is text and nothing else, even where it spells a special token.

Such a token (`<image>` in a caption, say) is handed to the chat template with a stand-in for its
first character, one that no vocabulary knows; the tokenizer later puts the character back (see
`inputs.tokenizer`).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from vlmflow_engine.inputs.prompts import Message, TextPart

# Makes a text of messages and template variables.
Writer = Callable[[list[Message], dict[str, Any]], str]


class SpelledTokens:
    """The special tokens that one prompt's messages and template variables may spell."""

    def __init__(
        self,
        tokens: Iterable[str],
        messages: Iterable[Message],
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokens = tuple(tokens)
        characters: set[str] = set()
        for text in _strings([list(messages), variables]):
            characters.update(text)
        edges = {edge for token in self._tokens for edge in (token[0], token[-1])}
        free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in characters)
        # First or last character of a token -> private-use.
        self._stand_ins = dict(zip(sorted(edges & characters), free, strict=False))
        self._all_edges = str.maketrans(self._stand_ins)

    def render(
        self, write: Writer, messages: Iterable[Message], variables: Mapping[str, Any]
    ) -> str:
        """Write messages and variables into a text in which every special token is the writer's.

        Where a writer would make one of texts that spell none by themselves, no character of theirs
        that begins or ends one is let through. (Always to hide as much would keep templates from
        finding what they seek in a text, as the end of a thought.)
        """
        messages, variables = list(messages), dict(variables)
        text = write(
            [self._hidden(message, self.hide) for message in messages],
            self._hidden(variables, self.hide),
        )
        if not self._stand_ins:
            return text
        thorough = write(
            [self._hidden(message, self._hide_edges) for message in messages],
            self._hidden(variables, self._hide_edges),
        )
        pattern = _pattern(self._tokens)
        return text if pattern.findall(text) == pattern.findall(thorough) else thorough

    def hide(self, text: str) -> str:
        """Replace the first character of each token that a text spells."""
        characters: list[str] | None = None
        for token in self._tokens:
            place = text.find(token)
            while place >= 0:
                characters = characters or list(text)
                characters[place] = self._stand_ins[token[0]]
                place = text.find(token, place + 1)
        return "".join(characters) if characters else text

    def show(self, text: str) -> str:
        """Put the hidden characters back."""
        for character, stand_in in self._stand_ins.items():
            text = text.replace(stand_in, character)
        return text

    def is_hiding_in(self, text: str) -> bool:
        """Whether there is anything to show in a text."""
        return any(stand_in in text for stand_in in self._stand_ins.values())

    def _hide_edges(self, text: str) -> str:
        return text.translate(self._all_edges)

    def _hidden(self, value: Any, hide: Callable[[str], str]) -> Any:
        """A copy of a message or of JSON data with all its texts hidden by `hide`."""
        if isinstance(value, str):
            return hide(value)
        if isinstance(value, Message):
            parts = tuple(
                TextPart(hide(part.text)) if isinstance(part, TextPart) else part
                for part in value.parts
            )
            return replace(value, parts=parts, extras=self._hidden(value.extras, hide))
        if isinstance(value, Mapping):
            # A template asks for what is under "type": only a key that spells a token is changed.
            return {
                self._hidden(key, self.hide): self._hidden(item, hide)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._hidden(item, hide) for item in value]
        return value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Message):
        for part in value.parts:
            if isinstance(part, TextPart):
                yield part.text
        yield from _strings(value.extras)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


@lru_cache(maxsize=16)
def _pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
