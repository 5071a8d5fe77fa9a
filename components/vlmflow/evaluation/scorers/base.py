"""What a scorer is, and the commonest kind: a text against the texts that would do."""

from collections.abc import Callable
from typing import Any, Protocol

from vlmflow.evaluation.answer import Answer, references


class Scorer(Protocol):
    """Gives each answer a number; more is better, 1 is as good as can be."""

    name: str
    needs_expected: bool  # records that expect nothing are left out

    def score(self, answer: Answer, expected: Any) -> float | None:
        """The score of an answer that has a text; None if it cannot be told.

        What it raises costs this answer its score, and is counted.
        """


class ReferenceScorer:
    """The best score of a text over all texts that would do."""

    needs_expected = True

    def __init__(self, name: str, score_one: Callable[[str, str], float]) -> None:
        """`score_one` takes the answer and one expected text."""
        self.name = name
        self._score_one = score_one

    def score(self, answer: Answer, expected: Any) -> float | None:
        assert answer.text is not None
        texts = references(expected)
        return max(self._score_one(answer.text, text) for text in texts) if texts else None


class ExpectedScorer:
    """A score of a text and all that is expected, whatever its shape."""

    needs_expected = True

    def __init__(self, name: str, score_text: Callable[[str, Any], float | None]) -> None:
        self.name = name
        self._score_text = score_text

    def score(self, answer: Answer, expected: Any) -> float | None:
        assert answer.text is not None
        return self._score_text(answer.text, expected)
