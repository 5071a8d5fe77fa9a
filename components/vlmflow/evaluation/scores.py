"""Scores of all records as columns of numbers: 8 bytes a score, 4 a slice."""

from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmflow.evaluation.answer import Answer
from vlmflow.evaluation.bootstrap import Scores
from vlmflow.evaluation.scorers import Scorer

NAN = float("nan")  # of a record that a scorer leaves out
MAX_SLICES = 1000  # different values of a field; what comes after is "(other)"
OTHER, MISSING = "(other)", "(missing)"

_MAX_NAME = 200


class ScoreColumns:
    """Scores every answer once and keeps the numbers."""

    def __init__(
        self,
        scorers: Sequence[Scorer],
        slice_fields: Sequence[str] = (),
        *,
        expected_field: str,
        failed_is_wrong: bool,
    ) -> None:
        self.scorers = tuple(scorers)
        self.num_records = 0
        self.num_failed = 0
        self.faults: Counter[str] = Counter()  # answers that a scorer could not score, by its name
        self.first_fault: dict[str, str] = {}
        self._expected_field = expected_field
        self._failed_is_wrong = failed_is_wrong
        self._columns = [array("d") for _ in self.scorers]
        self._slices = {field: _SliceColumn() for field in slice_fields}

    def add(self, answer: Answer) -> dict[str, float]:
        """Score an answer and return its scores by scorer; NAN where one leaves it out."""
        self.num_records += 1
        self.num_failed += answer.text is None
        expected = answer.field(self._expected_field)
        scores = {scorer.name: self._score(scorer, answer, expected) for scorer in self.scorers}
        for column, value in zip(self._columns, scores.values(), strict=True):
            column.append(value)
        for field, slices in self._slices.items():
            slices.add(answer.field(field))
        return scores

    def scores(self, name: str) -> Scores:
        """The column of a scorer, [num_records]."""
        index = [scorer.name for scorer in self.scorers].index(name)
        return np.frombuffer(self._columns[index], dtype=np.float64)

    def slices(self, field: str) -> tuple[list[str], NDArray[np.int32]]:
        """The names of a field's values, and of each record which one it has, [num_records]."""
        column = self._slices[field]
        return column.names, np.frombuffer(column.codes, dtype=np.int32)

    def _score(self, scorer: Scorer, answer: Answer, expected: Any) -> float:
        if scorer.needs_expected and expected is None and not answer.is_unreadable:
            return NAN
        if answer.text is None:
            return 0.0 if self._failed_is_wrong else NAN
        try:
            value = scorer.score(answer, expected)
        except Exception as error:  # somebody else's code, or an answer that it did not foresee
            self.faults[scorer.name] += 1
            self.first_fault.setdefault(
                scorer.name, f"{answer.record_id}: {type(error).__name__}: {error}"[:300]
            )
            return NAN
        return NAN if value is None else float(value)


class _SliceColumn:
    def __init__(self) -> None:
        self.codes = array("i")
        self.names: list[str] = []
        self._code_of: dict[str, int] = {}

    def add(self, value: Any) -> None:
        name = MISSING if value is None else str(value)[:_MAX_NAME]
        code = self._code_of.get(name)
        if code is None:
            name = name if len(self.names) < MAX_SLICES else OTHER
            code = self._code_of.setdefault(name, len(self.names))
            if code == len(self.names):
                self.names.append(name)
        self.codes.append(code)


def scored(column: Scores) -> NDArray[np.bool_]:
    """Which records a scorer did not leave out."""
    return ~np.isnan(column)
