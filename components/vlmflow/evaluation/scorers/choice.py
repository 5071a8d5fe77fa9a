"""Multiple choice: the letter that an answer settles on.

A letter counts where it cannot be a word: alone, after "answer", at the beginning before a sign,
after "option", in brackets. The first of these places that has a letter decides; if it has several
different ones the answer has not settled, and is wrong.
"""

import re

_LETTER = "[A-Ja-j]"
# "The answer is a cat" names no option, nor does "the answer is I think ..." in small letters.
_NO_WORD = r"(?:[A-J]|[b-hj]|[ai](?=\s*(?:[)\].,:]|$)))"
_ALONE = re.compile(rf"^\W*({_LETTER})\W*$")
_DECLARED = (
    r"\b(?i:{word})\b(?:\s+(?i:is|would be|should be))?\s*[:=]?\s*\**[(\[]?"
    rf"({_NO_WORD})(?![\w'])"
)
_ANSWER = re.compile(_DECLARED.replace("{word}", "answer"))
_OPTION = re.compile(_DECLARED.replace("{word}", "option|choice"))
_AT_THE_BEGINNING = re.compile(
    rf"^\s*\**[(\[]?({_LETTER})\s*[)\].:,](?:\s|\*|$)(?!\s*(?i:or|and)\b)"
)
_IN_BRACKETS = re.compile(rf"[(\[]({_LETTER})[)\]]")


def multiple_choice(text: str, expected: str) -> float:
    """1 if the answer settles on the expected letter, written as B, (B) or "B. cat"."""
    letter, target = find_letter(text), find_letter(expected)
    if target is None:  # the option's text is expected, not its letter
        return float(text.strip().lower() == expected.strip().lower())
    return float(letter == target)


def find_letter(text: str) -> str | None:
    """The letter that a text settles on, as a capital; None if there is none, or several."""
    for pattern in (_ALONE, _ANSWER, _AT_THE_BEGINNING, _OPTION, _IN_BRACKETS):
        letters = {str(letter).upper() for letter in pattern.findall(text)}
        if letters:
            return letters.pop() if len(letters) == 1 else None
    return None
