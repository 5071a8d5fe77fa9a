"""The elements of one large JSON array, without all of it in memory."""

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import Any

_MAX_ELEMENT_CHARACTERS = 1 << 20
_BLANK = " \t\r\n"
_BEHIND = (",", "]", *_BLANK)


class ArrayError(ValueError):
    """The text is no array of small elements. The message says where."""


def array_elements(chunks: Iterable[bytes]) -> Iterator[Any]:
    """Yield an array's elements. Raises ArrayError where it stops being one."""
    text = _Text(chunks)
    if text.next_character() != "[":
        raise ArrayError("it does not begin with '['")
    text.at += 1
    if text.next_character() == "]":
        text.at += 1
    else:
        number = 0
        while True:
            number += 1
            yield text.element(number)
            separator = text.next_character()
            text.at += 1
            if separator == "]":
                break
            if separator != ",":
                raise ArrayError(f"there is no ',' or ']' behind element {number}")
    if text.next_character():
        raise ArrayError("something follows its ']'")


class _Text:
    """The text from `at` on, as far as it was read."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.at = 0
        self._text = ""
        self._is_over = False
        self._chunks = iter(chunks)
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._parse = json.JSONDecoder(parse_constant=_refuse).raw_decode

    def next_character(self) -> str:
        """Skip blanks; return the character behind them, or "" at the end."""
        while True:
            text = self._text
            while self.at < len(text) and text[self.at] in _BLANK:
                self.at += 1
            if self.at < len(text):
                return text[self.at]
            if self._is_over:
                return ""
            self._read_on()

    def element(self, number: int) -> Any:
        self.next_character()
        while True:
            is_enough = self._is_over or len(self._text) - self.at > _MAX_ELEMENT_CHARACTERS
            try:
                value, end = self._parse(self._text, self.at)
            except (ValueError, RecursionError) as error:
                if is_enough:
                    raise ArrayError(f"its element {number} is not valid JSON") from error
            else:
                # A number may go on, and 0 before ".5" is one.
                is_whole = isinstance(value, str) or self._text[end : end + 1] in _BEHIND
                if is_enough or (is_whole and end < len(self._text)):
                    if end - self.at > _MAX_ELEMENT_CHARACTERS:
                        raise ArrayError(f"its element {number} is too long")
                    self.at = end
                    return value
            self._read_on()

    def _read_on(self) -> None:
        chunk = next(self._chunks, None)
        self._is_over = chunk is None
        try:
            more = self._decode(chunk or b"", final=self._is_over)
        except UnicodeDecodeError as error:
            raise ArrayError("it is not UTF-8") from error
        self._text = self._text[self.at :] + more
        self.at = 0


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
