"""Scores the answers of a job: means with intervals, slices, and a table of every record."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vlmflow.evaluation.answer import EXPECTED
from vlmflow.evaluation.bootstrap import LEVEL, NUM_RESAMPLES, SEED, Scores, mean_interval
from vlmflow.evaluation.evaluation_table import EvaluationTable, evaluation_row, rounded
from vlmflow.evaluation.prompts import Asked, Questions, without_questions
from vlmflow.evaluation.results import Results
from vlmflow.evaluation.row_picker import RowPicker
from vlmflow.evaluation.scorers import Scorer
from vlmflow.evaluation.scores import ScoreColumns, scored
from vlmflow.job.errors import SpecError

EVALUATION_SCHEMA_VERSION = 1
MAX_ROWS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions:
    """How scores are counted."""

    slice_fields: tuple[str, ...] = ()  # dotted paths, such as metadata.split
    expected_field: str = EXPECTED
    failed: Literal["wrong", "leave-out"] = "wrong"  # what records without an answer count as
    num_resamples: int = NUM_RESAMPLES
    seed: int = SEED
    max_rows: int = MAX_ROWS  # of the table for people


@dataclass(frozen=True, slots=True)
class Picked:
    """A row of the table for people, and where its picture is to be had."""

    asked: Asked
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found: `content` is evaluation.json."""

    content: dict[str, Any]
    picked: list[Picked]

    @property
    def means(self) -> dict[str, float]:
        """The mean of each scorer that scored anything."""
        means = {name: score["mean"] for name, score in self.content["scores"].items()}
        return {name: mean for name, mean in means.items() if mean is not None}


def evaluate(
    results: Results,
    scorers: Sequence[Scorer],
    options: EvaluationOptions,
    *,
    questions: Questions | None = None,
    table: Path | None = None,
) -> Evaluation:
    """Score all answers; every record's go to the Parquet file `table`.

    Raises SpecError if there is nothing to score.
    """
    columns = ScoreColumns(
        scorers,
        options.slice_fields,
        expected_field=options.expected_field,
        failed_is_wrong=options.failed == "wrong",
    )
    picker: RowPicker[Picked] = RowPicker(options.max_rows)
    names = [scorer.name for scorer in scorers]
    with _writing(table, names, list(options.slice_fields)) as rows:
        for asked in _asked(results, questions):
            answer, scores = asked.answer, columns.add(asked.answer)
            expected = answer.field(options.expected_field)
            if rows is not None:
                rows.add(answer, expected, scores)
            if not all(map(math.isnan, scores.values())):
                picker.add(
                    partial(_picked, asked, expected, scores),
                    answer.record_id,
                    answer.ordinal,
                    is_good=next(iter(scores.values())) >= 1.0,
                )
    _check_something_was_scored(columns, options, results)
    picked = picker.picked()
    content = {
        "schema_version": EVALUATION_SCHEMA_VERSION,
        "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "results": results.name,
        "manifest": None if questions is None else questions.uri,
        "counts": {"records": columns.num_records, "failed": columns.num_failed},
        "failed_count_as": options.failed,
        "expected_field": options.expected_field,
        "bootstrap": {
            "resamples": options.num_resamples,
            "seed": options.seed,
            "level": LEVEL,
        },
        "scores": {name: _score(columns, name, options) for name in names},
        "slices": {field: _slices(columns, field, options) for field in options.slice_fields},
        "rows": [item.row for item in picked],
    }
    return Evaluation(content, picked)


def _picked(asked: Asked, expected: Any, scores: dict[str, float]) -> Picked:
    return Picked(asked, evaluation_row(asked.answer, expected) | {"scores": rounded(scores)})


def _asked(results: Results, questions: Questions | None) -> Iterator[Asked]:
    return without_questions(results) if questions is None else questions.beside(results)


def _writing(
    path: Path | None, names: list[str], slice_fields: list[str]
) -> AbstractContextManager[EvaluationTable | None]:
    return nullcontext() if path is None else EvaluationTable(path, names, slice_fields)


def _score(columns: ScoreColumns, name: str, options: EvaluationOptions) -> dict[str, Any]:
    column = columns.scores(name)
    there = scored(column)
    return _mean(column[there], options) | {
        "left_out": int((~there).sum()),
        "faults": columns.faults[name],
        "first_fault": columns.first_fault.get(name),
    }


def _mean(scores: Scores, options: EvaluationOptions) -> dict[str, Any]:
    interval = mean_interval(scores, num_resamples=options.num_resamples, seed=options.seed)
    return {
        "mean": None if interval is None else round(float(scores.mean()), 6),
        "low": None if interval is None else round(interval.low, 6),
        "high": None if interval is None else round(interval.high, 6),
        "scored": len(scores),
    }


def _slices(columns: ScoreColumns, field: str, options: EvaluationOptions) -> list[dict[str, Any]]:
    """The scores of each value of a field, the most frequent value first."""
    names, codes = columns.slices(field)
    found = []
    for code, name in enumerate(names):
        among = codes == code
        found.append(
            {
                "value": name,
                "records": int(among.sum()),
                "scores": {
                    scorer.name: _mean(_among(columns.scores(scorer.name), among), options)
                    for scorer in columns.scorers
                },
            }
        )
    return sorted(found, key=lambda item: -item["records"])


def _among(column: Scores, among: NDArray[np.bool_]) -> Scores:
    return column[among & scored(column)]


def _check_something_was_scored(
    columns: ScoreColumns, options: EvaluationOptions, results: Results
) -> None:
    if columns.num_records == 0:
        raise SpecError(f"{results.name} holds no answers")
    if any(scored(columns.scores(scorer.name)).any() for scorer in columns.scorers):
        return
    for fault in columns.first_fault.values():
        raise SpecError(f"no answer of {results.name} could be scored; the first: {fault}")
    raise SpecError(
        f"no answer of {results.name} could be scored: no record has a field "
        f"{options.expected_field!r} that the scorers can use; --expected names another field, and "
        "--manifest a manifest that has it"
    )
